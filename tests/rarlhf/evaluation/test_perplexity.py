"""Against a slow loop: one text, one token at a time, the full context each time."""

import math
from collections.abc import Sequence

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from rarlhf.config.errors import UserError
from rarlhf.evaluation.perplexity import reference_perplexity

CONTEXT = 8


class Digits:
    """Token id = the character's digit; 10 starts a text."""

    def __init__(self, bos_token_id: int | None = 10, eos_token_id: int | None = None) -> None:
        self.bos_token_id = bos_token_id
        self.eos_token_id = eos_token_id

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        assert not add_special_tokens
        return [int(character) for character in text]


@pytest.fixture(scope="module")
def model() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=11, n_positions=CONTEXT, n_embd=12, n_layer=2, n_head=3, initializer_range=0.5,
        bos_token_id=10, eos_token_id=10,
    )  # fmt: skip
    return GPT2LMHeadModel(config)  # in train mode: dropout must be switched off


def slowly(model: GPT2LMHeadModel, texts: Sequence[str], before: Sequence[int] = (10,)) -> float:
    model.eval()
    perplexities = []
    for text in texts:
        ids = [*before, *(int(character) for character in text)][:CONTEXT]
        losses = []
        for end in range(1, len(ids)):
            with torch.no_grad():
                logits = model(torch.tensor([ids[:end]])).logits[0, -1].double()
            losses.append(-float(torch.log_softmax(logits, dim=0)[ids[end]]))
        perplexities.append(math.exp(sum(losses) / len(losses)))
    return sum(perplexities) / len(perplexities)


TEXTS = ["12", "3", "456789", "00", "7391", "1234567"]


@pytest.mark.parametrize("batch_size", [1, 2, 5, 100])
def test_equals_the_slow_loop_whatever_the_batch(model: GPT2LMHeadModel, batch_size: int) -> None:
    # float32 forward passes of other widths: relative 1e-5
    assert reference_perplexity(model.train(), Digits(), TEXTS, batch_size) == pytest.approx(
        slowly(model, TEXTS), rel=1e-5
    )


def test_without_start_token_the_second_token_is_the_first_predicted(model: GPT2LMHeadModel) -> None:
    texts = ["12", "456789"]
    without = reference_perplexity(model, Digits(), texts, 2, add_start_token=False)
    assert without == pytest.approx(slowly(model, texts, before=()), rel=1e-5)
    assert without != pytest.approx(slowly(model, texts), rel=1e-2)
    with pytest.raises(UserError, match="no token to predict"):
        reference_perplexity(model, Digits(), ["3"], 1, add_start_token=False)


def test_order_of_texts_changes_nothing(model: GPT2LMHeadModel) -> None:
    assert reference_perplexity(model, Digits(), TEXTS[::-1], 2) == reference_perplexity(model, Digits(), TEXTS, 2)


def test_texts_are_cut_to_the_context(model: GPT2LMHeadModel) -> None:
    long = "12345678901234"
    cut = long[: CONTEXT - 1]  # one position goes to the BOS token
    assert reference_perplexity(model, Digits(), [long], 1) == reference_perplexity(model, Digits(), [cut], 1)
    assert reference_perplexity(model, Digits(), [cut[:-1]], 1) != reference_perplexity(model, Digits(), [cut], 1)


def test_is_a_mean_over_texts_not_over_tokens(model: GPT2LMHeadModel) -> None:
    single = [reference_perplexity(model, Digits(), [text], 1) for text in ("3", "456789")]
    assert reference_perplexity(model, Digits(), ["3", "456789"], 2) == pytest.approx(sum(single) / 2, rel=1e-5)


def test_uniform_model_has_the_perplexity_of_its_vocabulary(model: GPT2LMHeadModel) -> None:
    flat = GPT2LMHeadModel(model.config)
    torch.nn.init.zeros_(flat.lm_head.weight)
    assert reference_perplexity(flat, Digits(), TEXTS, 3) == pytest.approx(11, rel=1e-5)


def test_end_of_text_stands_in_for_a_missing_bos(model: GPT2LMHeadModel) -> None:
    with_end = reference_perplexity(model, Digits(bos_token_id=None, eos_token_id=10), TEXTS, 3)
    assert with_end == reference_perplexity(model, Digits(), TEXTS, 3)
    assert with_end != reference_perplexity(model, Digits(bos_token_id=0), TEXTS, 3)


def test_bad_input_is_refused(model: GPT2LMHeadModel) -> None:
    with pytest.raises(UserError, match="raise prompts.perplexity"):
        reference_perplexity(model, Digits(), [], 1)
    with pytest.raises(UserError, match="has no token"):
        reference_perplexity(model, Digits(), ["1", ""], 1)
    with pytest.raises(UserError, match="neither a BOS nor an EOS"):
        reference_perplexity(model, Digits(bos_token_id=None), ["1"], 1)


def test_an_offset_of_all_logits_changes_nothing_in_bfloat16(shifted: tuple[GPT2LMHeadModel, GPT2LMHeadModel]) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain, lower = (reference_perplexity(lm, Digits(), TEXTS, 2) for lm in shifted)
    assert lower == pytest.approx(plain, rel=2e-5)
