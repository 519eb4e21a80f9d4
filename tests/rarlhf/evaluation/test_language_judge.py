"""Against a slow loop: one text, one token at a time."""

from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerBase

from rarlhf.config.errors import UserError
from rarlhf.config.params import Params
from rarlhf.evaluation.language_judge import LanguageJudge, open_language_judge
from rarlhf.models.loading import save_model
from rarlhf.system.machine import Machine
from tests.rarlhf.small import changed

CONTEXT = 8


class Digits:
    """Token id = the character's digit."""

    def __call__(self, texts: list[str], add_special_tokens: bool) -> dict[str, list[list[int]]]:
        assert not add_special_tokens
        return {"input_ids": [[int(character) for character in text] for text in texts]}


@pytest.fixture(scope="module")
def model() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    shape = {"n_positions": CONTEXT, "n_embd": 12, "n_layer": 2, "n_head": 3, "initializer_range": 0.5}
    return GPT2LMHeadModel(GPT2Config(vocab_size=11, bos_token_id=10, eos_token_id=10, **shape)).eval()


def judge(model: GPT2LMHeadModel, machine: Machine, batch_size: int = 2) -> LanguageJudge:
    return LanguageJudge(model, Digits(), batch_size, machine)


@torch.no_grad()
def slowly(model: GPT2LMHeadModel, prompt: str, text: str) -> float:
    ids = [int(digit) for digit in prompt + text][-CONTEXT:]
    total = 0.0
    for place in range(max(len(ids) - len(text), 1), len(ids)):
        logits = model(torch.tensor([ids[:place]])).logits[0, -1]
        total -= float(logits.log_softmax(dim=0)[ids[place]])
    return total


def test_a_continuation_is_measured_given_its_prompt(model: GPT2LMHeadModel, machine: Machine) -> None:
    prompts, texts = ["123", "123", "9", "45"], ["45", "6", "8765", "1234567"]  # the last is cut to the context
    found = judge(model, machine).likelihoods(prompts, texts)
    assert found.tokens.tolist() == [2, 1, 4, 7]
    expected = [slowly(model, prompt, text) for prompt, text in zip(prompts, texts, strict=True)]
    assert found.nll.tolist() == pytest.approx(expected, rel=1e-5)


def test_texts_that_leave_nothing_to_measure(model: GPT2LMHeadModel, machine: Machine) -> None:
    found = judge(model, machine).likelihoods(["12", "", ""], ["", "1", "12"])
    assert found.tokens.tolist() == [0, 0, 1]  # without a prompt, the first token is what the second follows
    assert found.nll.tolist() == pytest.approx([0.0, 0.0, slowly(model, "1", "2")], rel=1e-5)


def test_batches_change_nothing(model: GPT2LMHeadModel, machine: Machine) -> None:
    prompts, texts = ["1", "23", "456", "7"], ["2", "34", "5", "89"]
    one, all_at_once = (judge(model, machine, size).likelihoods(prompts, texts).nll for size in (1, 4))
    assert torch.allclose(one, all_at_once, atol=1e-5)


def test_an_embedding_is_the_mean_of_the_states(model: GPT2LMHeadModel, machine: Machine) -> None:
    found = judge(model, machine).embeddings(["12", "3", "", "45"])
    with torch.no_grad():
        states = model.transformer(torch.tensor([[1, 2], [4, 5]])).last_hidden_state
    assert torch.allclose(found[[0, 3]], states.mean(dim=1), atol=1e-5)
    assert found[2].tolist() == [0.0] * 12


def test_the_judge_is_the_base_model_or_another(
    lm: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerBase, params: Params, machine: Machine, tmp_path: Path
) -> None:
    save_model(lm, tokenizer, tmp_path / "base")
    with torch.no_grad():
        lm.transformer.wte.weight.mul_(2.0)
    save_model(lm, tokenizer, tmp_path / "other")

    def likelihood(source: str) -> float:
        chosen = changed(params, {"judge.language_model.source": source, "model.adapter": "none"})
        with open_language_judge(tmp_path / "base", chosen, machine) as opened:
            return float(opened.likelihoods(["we liked"], [" the film"]).nll)

    assert likelihood("base") == likelihood(str(tmp_path / "base"))
    assert likelihood("base") != likelihood(str(tmp_path / "other"))
    with pytest.raises(UserError, match=r"judge\.language_model\.source = '.*empty'"):
        (tmp_path / "empty").mkdir()
        likelihood(str(tmp_path / "empty"))
