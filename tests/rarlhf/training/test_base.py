"""The base model's tokenizer, rows, weights and training."""

from pathlib import Path

import pytest
import torch
from transformers import GPT2LMHeadModel, PreTrainedTokenizerBase

from rarlhf.config.errors import UserError
from rarlhf.config.params import Params
from rarlhf.messages.progress import SilentRecorder
from rarlhf.models.loading import load_causal_lm
from rarlhf.system.machine import Machine
from rarlhf.training.base import TokenRows, make_base_model, new_model, packed_rows, single_rows, train_tokenizer

END = 0
TEXTS = ["ab", "c", "abc"]


def ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """One token a character: no merge of the conftest's texts applies to these."""
    tokens = tokenizer(text)["input_ids"]
    assert len(tokens) == len(text)
    return tokens


def test_packed_rows_by_hand(tokenizer: PreTrainedTokenizerBase) -> None:
    a, b, c = ids(tokenizer, "abc")
    rows = packed_rows(TEXTS, tokenizer, length=4)
    # a b END c | END a b c | and an END that fills no row
    assert rows.rows.tolist() == [[a, b, END, c], [END, a, b, c]]
    assert rows[1]["input_ids"].tolist() == rows[1]["labels"].tolist() == [END, a, b, c]
    assert len(rows) == 2
    with pytest.raises(UserError, match="fill no row of 10 tokens; give more rows or lower model.scratch.context"):
        packed_rows(TEXTS, tokenizer, length=10)


def test_single_rows_by_hand(tokenizer: PreTrainedTokenizerBase) -> None:
    a, b, c = ids(tokenizer, "abc")
    rows = single_rows(TEXTS, tokenizer, length=9)
    assert rows.rows.tolist() == [[a, b, END, END], [c, END, END, END], [a, b, c, END]]
    # the end of text is learned where it ends the text, and ignored where it pads
    assert [rows[i]["labels"].tolist() for i in range(3)] == [[a, b, END, -100], [c, END, -100, -100], [a, b, c, END]]
    cut = single_rows(TEXTS, tokenizer, length=3)
    assert cut.rows.tolist() == [[a, b, END], [c, END, END], [a, b, c]]
    assert cut[2]["labels"].tolist() == [a, b, c]


def test_padding_adds_nothing_to_the_loss(lm: GPT2LMHeadModel) -> None:
    def loss(row: list[int], real: int) -> float:
        example = TokenRows(torch.tensor([row]), torch.tensor([real]))[0]
        return lm(**{name: value.unsqueeze(0) for name, value in example.items()}).loss.item()

    assert loss([5, 6, 7, END], 4) == pytest.approx(loss([5, 6, 7, END, END, END], 4), rel=1e-6)
    assert abs(loss([5, 6, 7, END], 4) - loss([5, 6, 7, END, END, END], 6)) > 0.01  # negative control


def test_the_tokenizer_keeps_every_byte(tokenizer: PreTrainedTokenizerBase) -> None:
    text = "Ünïcode 漢字 \U0001f600\n\ttabs  and spaces ."
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.eos_token_id == tokenizer.bos_token_id == tokenizer.pad_token_id == END
    assert len(tokenizer) == 280


def test_weights_follow_the_seed(tokenizer: PreTrainedTokenizerBase, params: Params) -> None:
    shape = params.model.scratch.model_copy(update={"width": 16, "context": 16})
    one, same, other = (
        new_model(tokenizer, shape.model_copy(update={"seed": seed})).transformer.wte.weight for seed in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert one.std().item() == pytest.approx(shape.init_std, rel=0.05)  # 4,480 draws: about 1 % of error


@pytest.mark.parametrize("packing", [True, False])
def test_training_lowers_the_loss_and_gives_equal_bytes(
    packing: bool, params: Params, machine: Machine, tmp_path: Path
) -> None:
    texts = ["we liked the film .", "we saw the music ."] * 20
    small = {"vocab_size": 280, "context": 16, "layers": 1, "width": 16, "packing": packing, "batch_size": 4}
    section = params.model.model_copy(update={"scratch": params.model.scratch.model_copy(update=small)})
    curves = [make_base_model(texts, tmp_path / name, section, machine, SilentRecorder()) for name in "ab"]
    assert curves[0] == curves[1]
    assert curves[0][-1]["loss"] < 0.8 * curves[0][0]["loss"]
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    model, tokenizer = load_causal_lm(str(tmp_path / "a"))
    assert model.config.n_positions == 16
    assert train_tokenizer(texts, section.scratch).get_vocab() == tokenizer.get_vocab()


def test_a_given_model_is_taken_as_it_is(
    lm: GPT2LMHeadModel, lm_folder: Path, params: Params, machine: Machine, tmp_path: Path
) -> None:
    section = params.model.model_copy(update={"source": str(lm_folder)})
    assert make_base_model([], tmp_path / "base", section, machine, SilentRecorder()) == []
    model, tokenizer = load_causal_lm(str(tmp_path / "base"))
    assert torch.equal(model.lm_head.weight, lm.lm_head.weight)
    assert tokenizer.eos_token_id == END
