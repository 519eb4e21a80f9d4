"""The exact frontier, against a case solved by hand, a search over all policies of a small case, and its identities."""

import itertools
import math

import numpy as np
import pytest

from rarlhf.data.frontier import Outcomes, evaluate_policy, exact_frontier, world_outcomes

COIN = Outcomes(np.array([1.0]), np.array([[0.5, 0.5]]), np.array([[0.0, 1.0]]))


def binary_kl(share):
    """KL of a coin with this share of heads from a fair one, nats."""
    return math.log(2) + share * math.log(share) + (1 - share) * math.log(1 - share)


def test_coin_by_hand():
    row = exact_frontier(COIN, [binary_kl(0.9)], 0.2)[0]
    assert row.best_mean.mean == pytest.approx(0.9)
    assert row.best_mean.cvar == pytest.approx(0.5)  # of the worst .2, .1 are tails: (.1 x 0 + .1 x 1) / .2
    assert row.best_cvar.cvar == pytest.approx(0.5)
    assert row.best_mean.kl == pytest.approx(binary_kl(0.9))


def test_certain_and_risky_prompt_by_hand():
    # A coin gives the easy prompt (share .8) 0 or 10, the hard one (share .2) -1 or 0; choosing costs ln 2 nats.
    # The budget .2 ln 2 pays for all of the hard prompt, which makes CVaR_.2 zero, or for a part of the easy one.
    outcomes = Outcomes(np.array([0.8, 0.2]), np.full((2, 2), 0.5), np.array([[0.0, 10.0], [-1.0, 0.0]]))
    row = exact_frontier(outcomes, [0.2 * math.log(2)], 0.2)[0]
    assert row.best_cvar.cvar == pytest.approx(0.0, abs=0.01)
    assert row.best_cvar.mean == pytest.approx(0.8 * 5, abs=0.2)
    assert row.best_mean.mean > 0.8 * 7
    assert row.best_mean.cvar < -0.3


@pytest.mark.slow
def test_agrees_with_a_search_over_all_policies():
    outcomes = Outcomes(
        np.array([0.6, 0.4]),
        np.array([[0.5, 0.3, 0.2], [0.2, 0.7, 0.1]]),
        np.array([[-1.0, 0.5, 2.0], [-3.0, -1.0, 0.0]]),
    )
    simplex = [(a / 40, b / 40, (40 - a - b) / 40) for a in range(41) for b in range(41 - a)]
    points = [evaluate_policy(outcomes, np.array(pair), 0.3) for pair in itertools.product(simplex[::3], simplex[::2])]
    within = [point for point in points if point.kl <= 0.3]
    row = exact_frontier(outcomes, [0.3], 0.3)[0]
    for best, found in (
        (row.best_mean.mean, max(point.mean for point in within)),
        (row.best_cvar.cvar, max(point.cvar for point in within)),
    ):
        assert found <= best + 0.002  # the CVaR policy gives a thousandth to the mean
        assert found > best - 0.06  # the grid is coarse


@pytest.mark.parametrize("wanted_only", [True, False])
def test_without_a_budget_nothing_moves(wanted_only):
    outcomes = world_outcomes(wanted_only)
    row = exact_frontier(outcomes, [0.0], 0.1)[0]
    reference = evaluate_policy(outcomes, outcomes.reference, 0.1)
    assert row.best_mean.mean == pytest.approx(reference.mean, abs=0.001)
    assert row.best_cvar.cvar == pytest.approx(reference.cvar, abs=0.001)
    assert reference.kl == pytest.approx(0, abs=1e-12)


def test_level_one_is_the_mean():
    row = exact_frontier(world_outcomes(False), [1.5], 1.0)[0]
    assert row.best_cvar.cvar == pytest.approx(row.best_mean.mean, abs=1e-6)


def test_more_budget_never_hurts_and_is_kept():
    rows = exact_frontier(world_outcomes(True), [0.5, 1.0, 2.0, 4.0, 8.0], 0.1)
    for smaller, larger in itertools.pairwise(rows):
        assert larger.best_mean.mean >= smaller.best_mean.mean
        assert larger.best_cvar.cvar >= smaller.best_cvar.cvar - 1e-9
    for row in rows:
        assert max(row.best_mean.kl, row.best_cvar.kl) <= row.kl_budget + 1e-9
        assert row.best_cvar.cvar >= row.best_mean.cvar
        assert row.best_cvar.mean <= row.best_mean.mean + 1e-9


def test_with_a_large_budget_every_prompt_has_its_best_answer():
    outcomes = world_outcomes(True)
    row = exact_frontier(outcomes, [20.0], 0.1)[0]
    best = outcomes.values.max(axis=1)
    assert row.best_mean.mean == pytest.approx(float(outcomes.shares @ best), abs=1e-6)
    assert row.best_mean.cvar == row.best_cvar.cvar == pytest.approx(best.min(), abs=1e-6)


@pytest.mark.parametrize("wanted_only", [True, False])
def test_mean_and_tail_disagree_in_the_world(wanted_only):
    row = exact_frontier(world_outcomes(wanted_only), [2.0], 0.1)[0]
    assert row.best_mean.mean - row.best_cvar.mean > 0.5
    assert row.best_cvar.cvar - row.best_mean.cvar > 1.5


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match=r"risk_alpha must be in \(0, 1\], got 0"):
        exact_frontier(COIN, [1.0], 0.0)
    with pytest.raises(ValueError, match=r"must be >= 0, got -1"):
        exact_frontier(COIN, [1.0, -1.0], 0.5)
