"""Which queries a batch holds, and how an update's numbers and micro-batches are joined."""

import pytest
import torch

from rarlhf.data.batches import query_batch
from rarlhf.models.episodes import Episodes, stacked
from rarlhf.rl.rollout import UpdateStats, combined

QUERIES = [[i] for i in range(14)]


def passes(seed: int, stream: str = "queries") -> list[list[int]]:
    """The numbers of the queries in three passes of two batches of six."""
    batches = [[query[0] for query in query_batch(QUERIES, i, 6, seed, stream)] for i in range(6)]
    return [batches[i] + batches[i + 1] for i in (0, 2, 4)]


def test_each_pass_takes_other_queries_in_another_order() -> None:
    seen = passes(1)
    for taken in seen:
        assert len(set(taken)) == 12  # none twice; two of fourteen are left out
        assert set(taken) <= set(range(14))
    assert seen[0] != seen[1] != seen[2] != seen[0]
    assert passes(1) == seen
    assert all(one != other for one, other in zip(seen, passes(2), strict=True))
    assert all(one != other for one, other in zip(seen, passes(1, "candidates"), strict=True))


def test_an_updates_numbers_are_means_but_for_the_largest_ratio_and_the_steps_left_out() -> None:
    one, other = UpdateStats(1.0, 2.0, 0.5, 0.25, 3.0, 1.0), UpdateStats(2.0, 6.0, 0.0, 0.75, 9.0, 1.0)
    assert combined([one, other]) == pytest.approx((1.5, 4.0, 0.25, 0.5, 9.0, 2.0))


def test_shorter_responses_are_padded_with_the_end_of_text() -> None:
    def episode(response: list[int]) -> Episodes:
        tokens = torch.tensor([response])
        return Episodes(torch.tensor([[5]]), torch.tensor([[True]]), tokens, torch.ones_like(tokens, dtype=torch.bool))

    together = stacked([episode([1, 2, 3]), episode([4])], pad_id=9)
    assert together.responses.tolist() == [[1, 2, 3], [4, 9, 9]]
    assert together.response_mask.tolist() == [[True, True, True], [True, False, False]]
