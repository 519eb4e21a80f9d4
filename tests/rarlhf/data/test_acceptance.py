"""What keeping one of several draws costs: unbiased, an upper bound, and a threshold at a target."""

from itertools import product
from math import log

import numpy as np
import pytest
from numpy.typing import NDArray

from rarlhf.data.acceptance import best_of_n_nats, expected_nats, nats_of_draws, threshold_at

SHARES = [1e-6, 0.001, 0.01, 0.05, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 0.999999]
DRAWS = [1, 2, 3, 5, 8, 19, 64, 500]
Array = NDArray[np.float64]


def test_best_of_n_by_hand() -> None:
    assert best_of_n_nats(1) == 0
    assert best_of_n_nats(4) == pytest.approx(0.6363, abs=1e-4)  # 1.3863 - 0.75
    assert best_of_n_nats(19) == pytest.approx(1.997, abs=1e-3)  # 2.9444 - 0.9474
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        best_of_n_nats(0)


def test_each_answer_has_the_harmonic_number_of_the_draws_before_it() -> None:
    nats = nats_of_draws([1, 2, 3, 4, 4], [True, True, True, True, False], 4)
    assert nats.tolist() == pytest.approx([0, 1, 3 / 2, 11 / 6, log(4) - 3 / 4])  # 1 + 1/2 + 1/3 = 11/6
    by_chance = nats_of_draws([4, 4], [True, False], 4, np.array([0.2, 0.0]))
    # 1 - 1/4 (1 - 0.2) = 0.8, so an accepted answer has log(0.2 / 0.8); one that was missed has log 4 more.
    assert by_chance.tolist() == pytest.approx([11 / 6 + log(0.25), log(4) - 3 / 4 + log(4)])
    sure = nats_of_draws([3], [True], 4, np.array([1.0]))
    assert sure.tolist() == pytest.approx([3 / 2])  # whatever the others are: it passes anyway


@pytest.mark.parametrize("share", [0.05, 0.3, 0.9])
def test_the_harmonic_numbers_are_unbiased_where_draws_have_no_end(share: float) -> None:
    n = 3000  # (1 - 0.05)^3000 < 1e-66
    numbers = np.arange(1, n + 1)
    first = share * (1 - share) ** (numbers - 1)  # that the first acceptance is at k
    assert float(first @ nats_of_draws(numbers.tolist(), [True] * n, n)) == pytest.approx(-log(share), rel=1e-9)
    assert expected_nats(np.array(share), n) == pytest.approx(-log(share), rel=1e-9)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.7, 1.0])
@pytest.mark.parametrize("n", [1, 2, 3, 6])
def test_expected_nats_are_the_mean_over_all_runs(n: int, share: float) -> None:
    total = 0.0
    for passes in product([False, True], repeat=n):  # of each draw, were all n made
        chance = float(np.prod([share if passed else 1 - share for passed in passes]))
        made = passes.index(True) + 1 if any(passes) else n
        total += chance * float(nats_of_draws([made], [any(passes)], n)[0])
    grid = expected_nats(np.array([[share], [0.4]]), n)
    assert grid.shape == (2, 1)
    assert grid[0, 0] == pytest.approx(total, abs=1e-12)


@pytest.mark.parametrize("n", DRAWS)
def test_the_mean_is_at_least_the_kl_of_rejection(n: int) -> None:
    """The truth where scores have no ties: accepted answers have the density (1 - q) / Z, the best of n the rest."""
    for share in SHARES:
        missed = (1 - share) ** n
        passed = (1 - missed) * log((1 - missed) / share)
        fallback = missed * ((n - 1) * log(1 - share) + log(n) - (n - 1) / n)
        assert expected_nats(np.array(share), n) >= passed + fallback - 1e-12
    assert expected_nats(np.array(0.5), 500) == pytest.approx(log(2))  # and not far above it


def law(p: Array, accepted: Array, n: int) -> Array:
    """Exact chances of the kept answer, the answers in the order of their scores, the worst first."""
    share = float(p @ accepted)
    rejected = p * (1 - accepted)
    best = np.diff(np.cumsum(rejected) ** n, prepend=0.0)
    return p * accepted * sum((1 - share) ** k for k in range(n)) + best


@pytest.mark.parametrize("n", [1, 2, 3, 8, 64])
def test_the_mean_is_at_least_the_kl_of_acceptance_by_chance(n: int) -> None:
    """Exact on answers that can be counted; without what missed answers cost besides, it would be too low."""
    draws = np.random.default_rng(5)
    without = []
    for _ in range(300):
        p = draws.dirichlet(np.ones(draws.integers(2, 20)))
        flat = draws.random() < 0.3  # acceptance that does not depend on the answer leaves the policy as it is
        accepted = np.full(len(p), draws.random()) if flat else np.sort(draws.random(len(p)) ** 3)
        share, kept = float(p @ accepted), law(p, accepted, n)
        assert kept.sum() == pytest.approx(1)
        truth = float(kept @ np.log(kept / p))
        numbers = np.arange(1, n + 1)
        first = share * (1 - share) ** (numbers - 1)
        found = float(first @ nats_of_draws(numbers.tolist(), [True] * n, n))
        ones, sure = np.ones(len(p), dtype=int).tolist(), [True] * len(p)
        found += float(first.sum() * (p * accepted / share) @ nats_of_draws(ones, sure, n, accepted))
        missed = (1 - share) ** n
        assert found + missed * nats_of_draws([n], [False], n, np.zeros(1))[0] >= truth - 1e-9
        without.append(found + missed * nats_of_draws([n], [False], n)[0] - truth)
    assert n == 64 or min(without) < -0.05  # with many draws few answers are missed


def test_the_threshold_is_where_the_target_is_reached() -> None:
    scores = np.random.default_rng(3).normal(size=(40, 50)) + np.linspace(-1, 1, 40)[:, None]
    ordered = np.unique(scores)
    for target in (0.1, 0.5, 1.5):
        threshold = threshold_at(scores, target, 64)
        below = ordered[np.searchsorted(ordered, threshold) - 1]
        at, before = (expected_nats((scores >= value).mean(axis=1), 64).mean() for value in (threshold, below))
        assert before < target <= at < target + 0.02
    low, high = (threshold_at(scores, target, 64) for target in (0.1, 1.5))
    assert low < high


def test_a_target_that_n_draws_cannot_cost_asks_for_the_highest_score() -> None:
    assert threshold_at(np.array([[0.0, 1.0, 5.0, 3.0]]), 3.0, 4) == 5.0
    assert threshold_at(np.array([[0.0, 1.0, 5.0, 3.0]]), 1e-9, 4) == 1.0  # at 0 every answer passes, for nothing
