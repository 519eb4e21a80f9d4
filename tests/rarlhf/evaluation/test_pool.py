"""Best of n from one pool: hand numbers, ties, and agreement with draws."""

from itertools import combinations, combinations_with_replacement, product
from math import factorial, log, prod

import numpy as np
import pytest

from rarlhf.evaluation.pool import best_of_n_curve, best_of_n_weights


def test_weights_by_hand() -> None:
    # Of 4 samples the best of 2 without replacement: 6 pairs; the lowest never wins, then 1, 2 and 3 of them.
    weights = best_of_n_weights(np.array([[0.5, -1.0, 3.0, 2.0]]), 2)
    np.testing.assert_allclose(weights, [[1 / 6, 0, 3 / 6, 2 / 6]])


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_weights_are_those_of_every_choice_of_n_samples(n: int) -> None:
    scores = np.array([0.3, 2.0, 0.3, -1.0, 2.0])
    counts = np.zeros(5)
    for chosen in combinations(range(5), n):
        best = [i for i in chosen if scores[i] == max(scores[j] for j in chosen)]
        counts[best] += 1 / len(best)
    shared = np.array([counts[scores == value].mean() for value in scores])  # alike for samples that score alike
    np.testing.assert_allclose(best_of_n_weights(scores[None], n)[0], shared / shared.sum())


def test_one_draw_is_the_pool_itself() -> None:
    scores = np.random.default_rng(1).normal(size=(6, 8))
    curve = best_of_n_curve(scores, np.arange(6) < 2, 0.25)
    assert curve["n"] == [1, 2, 4]
    assert curve["kl"][0] == pytest.approx(0, abs=1e-12) and curve["kl_bound"][0] == 0
    assert curve["metrics"]["reward_mean"][0] == pytest.approx(scores.mean())
    assert curve["metrics"]["reward_prompt_tail"][0] == pytest.approx(scores[:2].mean())
    assert curve["metrics"]["reward_cvar_10"][0] == pytest.approx(np.sort(scores.ravel())[:12].mean())
    for values in curve["metrics"].values():
        assert values == sorted(values)


@pytest.mark.parametrize(("samples", "n"), [(4, 2), (8, 4)])
def test_the_mean_is_that_of_fresh_draws_on_a_known_distribution(samples: int, n: int) -> None:
    """Without bias: the mean over all pools that can be drawn is that of n draws, to the last digits."""
    values, shares = np.array([-1.0, 0.0, 2.0]), np.array([0.5, 0.3, 0.2])

    def chance(draws: tuple[int, ...]) -> float:
        return float(np.prod(shares[list(draws)]))

    exact = sum(chance(draws) * values[list(draws)].max() for draws in product(range(3), repeat=n))
    mean = 0.0
    for pool in combinations_with_replacement(range(3), samples):
        curve = best_of_n_curve(values[[pool]], None, 0.1)
        orders = factorial(samples) // prod(factorial(pool.count(value)) for value in range(3))
        mean += orders * chance(pool) * curve["metrics"]["reward_mean"][curve["n"].index(n)]
    assert mean == pytest.approx(exact, rel=1e-12)


def test_the_kl_is_below_the_bound_and_near_it_where_scores_differ() -> None:
    rng = np.random.default_rng(3)
    apart = best_of_n_curve(rng.normal(size=(3, 512)), None, 0.1)
    for estimated, bound in zip(apart["kl"][:6], apart["kl_bound"][:6], strict=True):
        assert estimated == pytest.approx(bound, rel=0.05, abs=1e-9)
    few = best_of_n_curve(rng.normal(size=(3, 32)), None, 0.1)
    assert all(e <= b + 1e-12 for e, b in zip(few["kl"], few["kl_bound"], strict=True))  # however few samples there are
    two = best_of_n_curve(np.array([[0.0, 0.0, 0.0, 1.0]]), None, 0.1)
    # The better of 2: 7/16 for the score 1, which has a quarter of the samples.
    assert two["kl"][1] == pytest.approx(7 / 16 * log(7 / 4) + 9 / 16 * log(3 / 4))
    alike = best_of_n_curve(rng.integers(0, 2, size=(50, 64)).astype(float), None, 0.1)
    assert all(e <= b + 1e-12 for e, b in zip(alike["kl"], alike["kl_bound"], strict=True))
    assert alike["kl"][-1] == pytest.approx(log(2), rel=0.1)  # always the higher of two equally likely scores
    assert alike["kl_bound"][-1] > 2


def test_an_impossible_n_is_refused() -> None:
    with pytest.raises(ValueError, match="n must be 1 to 4, the samples to a prompt, got 5"):
        best_of_n_weights(np.zeros((2, 4)), 5)
