"""Equal queries next to each other go through the model once, and nothing else changes."""

import pytest
import torch
from transformers import GPT2LMHeadModel

from rarlhf.decoding.eager import EagerDecoder, alike, shared_logprobs
from rarlhf.models.episodes import Episodes
from rarlhf.models.policy import Sampling, response_logprobs

SAMPLING = Sampling(temperature=0.7, min_new_tokens=0, max_new_tokens=3, end_id=0)
QUERIES = torch.tensor([[5, 6, 7], [5, 6, 7], [5, 6, 7], [0, 8, 9], [0, 8, 9], [0, 8, 9]])
PADDED = torch.tensor([[True] * 3] * 3 + [[False, True, True]] * 3)


def episodes(mask: torch.Tensor, length: int = 3) -> Episodes:
    responses = torch.arange(10, 10 + 6 * length).view(6, length)
    return Episodes(QUERIES, mask, responses, torch.ones(6, length, dtype=torch.bool))


def rows_read(lm: GPT2LMHeadModel, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    seen: list[int] = []
    forward = lm.transformer.forward

    def counted(**values: object) -> object:
        seen.append(len(values["input_ids"]))  # type: ignore[arg-type]
        return forward(**values)

    monkeypatch.setattr(lm.transformer, "forward", counted)
    return seen


def test_runs_of_equal_rows() -> None:
    first, copies = alike(QUERIES, PADDED)
    assert first.tolist() == [0, 3] and copies.tolist() == [0, 0, 0, 1, 1, 1]
    first, copies = alike(QUERIES[[0, 3, 1]], PADDED[[0, 3, 1]])  # equal, and not next to each other
    assert first.tolist() == [0, 1, 2]
    assert alike(QUERIES[[0, 1]], PADDED[[0, 3]])[0].tolist() == [0, 1]  # equal tokens, another mask


@pytest.mark.parametrize("mask", [torch.ones(6, 3, dtype=torch.bool), PADDED])
@pytest.mark.parametrize("length", [1, 3])
def test_the_log_probabilities_are_those_of_whole_passes(
    mask: torch.Tensor, length: int, lm: GPT2LMHeadModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = episodes(mask, length)
    with torch.no_grad():
        expected = response_logprobs(lm, given, SAMPLING)
        seen = rows_read(lm, monkeypatch)
        found = shared_logprobs(lm, given, SAMPLING)
    assert torch.allclose(found, expected, atol=1e-5)
    assert seen == [2, 6][: min(length, 2)]


def test_too_few_copies_are_not_worth_it(lm: GPT2LMHeadModel, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = rows_read(lm, monkeypatch)
    decoder = EagerDecoder(lm, PADDED[2:5], 3)  # two queries in three rows
    with torch.no_grad():
        decoder(QUERIES[2:5])
    assert seen == [3]
