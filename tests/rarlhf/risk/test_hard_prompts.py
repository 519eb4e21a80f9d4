"""Drawing hard prompts more often: which are taken, and what they weigh."""

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rarlhf.data.batches import query_batch
from rarlhf.risk.hard_prompts import HardPrompts
from rarlhf.rl.ppo import PPOTrainer

QUERIES = [[i] for i in range(100)]
BATCH = [[200 + i] for i in range(10)]


def by_number(queries: Sequence[list[int]]) -> Tensor:
    """A critic for which small numbers are hard."""
    return torch.tensor([float(query[0]) for query in queries])


def test_the_hard_ones_are_the_lowest_of_as_many_candidates_as_alpha_asks_for() -> None:
    seen: list[int] = []

    def value_of(queries: Sequence[list[int]]) -> Tensor:
        seen.extend(query[0] for query in queries)
        return by_number(queries)

    mixed, threshold = HardPrompts(QUERIES, 0.4, seed=1).mix(BATCH, 3, Fraction("0.2"), value_of)
    assert len(seen) == 20  # 4 of 10 hard, a fifth of 20
    assert mixed[:6] == BATCH[:6]
    assert sorted(query[0] for query in mixed[6:]) == sorted(seen)[:4]
    assert threshold == (sorted(seen)[3] + sorted(seen)[4]) / 2


@pytest.mark.parametrize(
    ("share", "level", "hard", "candidates"),
    [(0.4, "0.3", 4, 14), (0.29, "0.5", 29, 58)],  # 4 / .3 = 13.3, rounded up; .29 of 100, though .29 is less in binary
)
def test_shares_are_counted_exactly(share: float, level: str, hard: int, candidates: int) -> None:
    batch, seen = BATCH * (10 if hard == 29 else 1), []
    mixed, _ = HardPrompts(QUERIES, share, seed=1).mix(
        batch, 0, Fraction(level), lambda queries: seen.extend(queries) or by_number(queries)
    )
    assert sum(query[0] < 200 for query in mixed) == hard
    assert len(seen) == candidates


def test_another_batch_has_other_candidates_and_the_same_batch_the_same() -> None:
    hard = HardPrompts(QUERIES, 0.4, seed=1)
    one, again, other = (hard.mix(BATCH, index, Fraction("0.2"), by_number)[0] for index in (0, 0, 1))
    assert one == again != other
    assert HardPrompts(QUERIES, 0.4, seed=2).mix(BATCH, 0, Fraction("0.2"), by_number)[0] != one


def test_candidates_are_drawn_apart_from_the_batch() -> None:
    batch, seen = query_batch(QUERIES, 0, 10, seed=1), []
    HardPrompts(QUERIES, 0.4, seed=1).mix(
        batch, 0, Fraction("0.2"), lambda queries: seen.extend(queries) or by_number(queries)
    )
    assert not all(query in seen for query in batch)  # as those of the same shuffle would be


def test_candidates_are_at_most_all_there_are() -> None:
    mixed, threshold = HardPrompts(QUERIES[:12], 0.4, seed=1).mix(BATCH, 0, Fraction("0.1"), by_number)
    assert [query[0] for query in mixed[6:]] != [0, 1, 2, 3]  # in the order in which they were drawn
    assert sorted(query[0] for query in mixed[6:]) == [0, 1, 2, 3]
    assert threshold == 3.5


@pytest.mark.parametrize(("share", "level"), [(0.0, Fraction(1, 5)), (0.4, Fraction(1)), (0.05, Fraction(1, 5))])
def test_nothing_is_replaced_without_need(share: float, level: Fraction) -> None:
    def never(queries: Sequence[list[int]]) -> Tensor:
        raise AssertionError("the critic is not asked")

    assert HardPrompts(QUERIES, share, seed=1).mix(BATCH, 0, level, never) == (BATCH, -torch.inf)


def test_weights_are_the_ratio_of_the_two_distributions() -> None:
    # alpha .2, lambda .4: q = .6 p above the quantile; below it .6 p + .4 p / .2 = 2.6 p
    weights = HardPrompts(QUERIES, 0.4, seed=1).weights(torch.tensor([1.0, 2.0, 3.0]), 2.0, Fraction("0.2"))
    assert weights == (Fraction(5, 13), Fraction(5, 13), Fraction(5, 3))
    # their mean under q is 1: the hard fifth is drawn with probability .2 x 2.6 = .52
    assert pytest.approx(1.0) == 0.52 / 2.6 + 0.48 / 0.6


@pytest.mark.parametrize("error", [-1e-6, 1e-6])
def test_rounding_does_not_decide_what_a_hard_prompt_weighs(
    error: float, make_trainer: Callable[..., PPOTrainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The critic values a prompt once bare and once with its response, in other batches: the last bits differ."""
    queries = [[5 + i] * (1 + i % 3) for i in range(14)]
    trainer = make_trainer(**{"risk.hard_share": 0.5, "risk.alpha": 0.5})
    exact = trainer.query_values
    monkeypatch.setattr(trainer, "query_values", lambda queries: exact(queries) + error)
    rollout = trainer.collect_hard_rollout(HardPrompts(queries, 0.5, seed=1), queries[:6], 4)
    assert rollout.weights is not None
    # .5 p above the quantile; below it .5 p + .5 p / .5 = 1.5 p
    assert rollout.weights[3:] == (Fraction(2, 3),) * 3


def test_the_trainer_draws_them_keeps_more_episodes_and_resumes_with_the_same_bytes(
    make_trainer: Callable[..., PPOTrainer], tmp_path: Path
) -> None:
    queries = [[5 + i] * (1 + i % 3) for i in range(40)]
    edits = {"risk.hard_share": 0.5, "risk.alpha": 0.4, "risk.ranking": "value", "ppo.checkpoint_every": 3}
    plain = make_trainer(**edits | {"risk.hard_share": 0.0})
    mixed = make_trainer(**edits)
    kept = [t.train(queries, tmp_path / f"{i}.safetensors")[-1]["risk/kept"] for i, t in enumerate((plain, mixed))]
    assert kept[0] == 3  # ceil(.4 x 6)
    assert kept[1] > 3  # the hard ones, worst by value, weigh less than those drawn from p
    resumed = make_trainer(**edits)
    records = resumed.train(queries, tmp_path / "1.safetensors")
    assert records == mixed.records
    assert all(torch.equal(a, b) for a, b in zip(resumed.policy.parameters(), mixed.policy.parameters(), strict=True))


def test_the_critics_value_of_a_bare_query_is_that_of_its_first_response_token(
    make_trainer: Callable[..., PPOTrainer],
) -> None:
    trainer = make_trainer()
    queries = [[5], [6, 7, 8], [9, 10]]
    rollout = trainer.collect_rollout(queries, 1)
    torch.testing.assert_close(trainer.query_values(queries), rollout.values[:, 0], atol=1e-5, rtol=1e-5)
