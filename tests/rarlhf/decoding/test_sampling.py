"""Sampling with a cache: the right distribution, exact log-probabilities, independence of batching."""

import pytest
import torch
from transformers import GPT2LMHeadModel

from rarlhf.config.errors import UserError
from rarlhf.decoding.prompts import left_pad
from rarlhf.decoding.sampling import Decoding, invert, sample_responses
from rarlhf.models.policy import Sampling

SAMPLING = Sampling(temperature=1.0, min_new_tokens=0, max_new_tokens=6, end_id=0)
QUERIES = [[5, 6, 7], [8], [9, 10], [5, 5, 5]]


def test_invert_by_hand() -> None:
    probabilities = torch.tensor([[0.2, 0.0, 0.5, 0.3]]).expand(5, 4)
    uniforms = torch.tensor([0.0, 0.19, 0.2, 0.69, 0.9999999])
    assert invert(probabilities, uniforms).tolist() == [0, 0, 2, 2, 3]  # the token of probability 0 is never drawn


def test_draws_follow_the_distribution() -> None:
    probabilities = torch.tensor([0.1, 0.6, 0.3])
    uniforms = torch.rand(20_000, generator=torch.Generator().manual_seed(6))
    drawn = invert(probabilities.expand(20_000, 3), uniforms)
    shares = torch.bincount(drawn, minlength=3) / 20_000
    assert torch.all((shares - probabilities).abs() < 4 * (probabilities * (1 - probabilities) / 20_000).sqrt())


def test_left_pad() -> None:
    tokens, mask = left_pad([[1, 2], [3]], 9, torch.device("cpu"))
    assert tokens.tolist() == [[1, 2], [9, 3]]
    assert mask.tolist() == [[True, True], [False, True]]


def test_responses_end_at_the_end_of_text(lm: GPT2LMHeadModel) -> None:
    prompts = left_pad(QUERIES * 25, 0, torch.device("cpu"))
    uniforms = torch.rand(100, 6, generator=torch.Generator().manual_seed(7))
    episodes = sample_responses(Decoding(lm, SAMPLING), prompts, uniforms)
    assert set(episodes.response_mask.sum(dim=1).tolist()) == {1, 2, 3, 4, 5, 6}
    for response, real in zip(episodes.responses.tolist(), episodes.response_mask.tolist(), strict=True):
        length = sum(real)
        assert real == [True] * length + [False] * (6 - length)
        assert 0 not in response[: length - 1]
        assert length == 6 or response[length - 1] == 0
        assert response[length:] == [0] * (6 - length)


@pytest.mark.parametrize("forced", [3, 6])
def test_min_new_tokens_forbids_the_end(lm: GPT2LMHeadModel, forced: int) -> None:
    prompts = left_pad(QUERIES, 0, torch.device("cpu"))
    episodes = sample_responses(Decoding(lm, SAMPLING._replace(min_new_tokens=forced)), prompts, torch.zeros(4, 6))
    assert (episodes.responses[:, :forced] != 0).all()


def test_the_end_is_allowed_again_after_min_new_tokens(lm: GPT2LMHeadModel) -> None:
    with torch.no_grad():
        lm.transformer.ln_f.bias.mul_(50.0)  # the end is all but certain wherever it may be drawn
    prompts = left_pad(QUERIES, 0, torch.device("cpu"))
    episodes = sample_responses(Decoding(lm, SAMPLING._replace(min_new_tokens=3)), prompts, torch.full((4, 6), 0.5))
    assert episodes.response_mask.tolist() == [[True] * 4] * 4
    assert (episodes.responses == 0).tolist() == [[False, False, False, True]] * 4


def test_batching_does_not_change_the_draws(lm: GPT2LMHeadModel) -> None:
    prompts = left_pad(QUERIES, 0, torch.device("cpu"))
    uniforms = torch.rand(4, 6, generator=torch.Generator().manual_seed(8))
    together = sample_responses(Decoding(lm, SAMPLING), prompts, uniforms)
    for row, query in enumerate(QUERIES):
        one = left_pad([query], 0, torch.device("cpu"))
        alone = sample_responses(Decoding(lm, SAMPLING), one, uniforms[row : row + 1])
        width = alone.responses.shape[1]
        assert alone.responses[0].tolist() == together.responses[row, :width].tolist()
        assert alone.response_mask[0].tolist() == together.response_mask[row, :width].tolist()


@pytest.mark.parametrize("forced", [0, 3])  # the forbidden end of text has the logit -inf, which is no overflow
@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_logits_that_are_not_finite_are_refused(wrong: float, forced: int, lm: GPT2LMHeadModel) -> None:
    prompts = left_pad(QUERIES, 0, torch.device("cpu"))
    decoding, uniforms = Decoding(lm, SAMPLING._replace(min_new_tokens=forced)), torch.full((4, 6), 0.5)
    sample_responses(decoding, prompts, uniforms)
    with torch.no_grad():
        lm.transformer.wte.weight[7, 0] = wrong
    with pytest.raises(UserError, match="logits are not finite"):
        sample_responses(decoding, prompts, uniforms)
