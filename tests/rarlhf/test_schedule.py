"""The soft-risk schedule against hand counts."""

from fractions import Fraction

import pytest

from rarlhf.schedule import kept_episodes, schedule_end, schedule_progress


def risk_level(iteration: int, iterations: int, alpha: Fraction, warmup: int, rho: Fraction) -> Fraction:
    """The level alpha' as the paper writes it."""
    slope = (1 - alpha) / (schedule_end(iterations, rho) - warmup)
    expected = Fraction(1) if iteration <= warmup else max(alpha, 1 - slope * (iteration - warmup))
    level = 1 - (1 - alpha) * schedule_progress(iteration, iterations, warmup, rho)
    assert level == expected
    return level


def test_kept_episodes_of_a_small_run() -> None:
    # B 10, n 2, M 12, alpha .4, rho .95: J = ceil(11.4) = 12, K = .6 / 10 = .06 an iteration.
    kept = [kept_episodes(10, risk_level(m, 12, Fraction("0.4"), 2, Fraction("0.95"))) for m in range(1, 13)]
    assert kept == [10, 10, 10, 9, 9, 8, 7, 7, 6, 6, 5, 4]


def test_counts_are_exact_where_floats_are_not() -> None:
    assert kept_episodes(25, Fraction("0.28")) == 7  # .28 * 25 is 7.000000000000001 in floats, whose ceiling is 8
    assert schedule_end(25, Fraction("0.28")) == 7


def test_schedule_never_rises_and_ends_at_alpha() -> None:
    levels = [risk_level(m, 194, Fraction("0.4"), 30, Fraction("0.95")) for m in range(1, 195)]
    assert levels == sorted(levels, reverse=True)
    assert levels[29] == 1  # m = n still keeps all
    assert levels[schedule_end(194, Fraction("0.95")) - 1] == Fraction("0.4")


def test_alpha_one_keeps_everything() -> None:
    assert {risk_level(m, 20, Fraction(1), 3, Fraction("0.8")) for m in range(1, 21)} == {1}


def test_counting_from_zero_is_one_iteration_late() -> None:
    rho = Fraction("0.95")
    ours = [schedule_progress(m, 12, 2, rho) for m in range(1, 13)]
    theirs = [schedule_progress(m, 12, 2, rho) for m in range(12)]
    assert theirs == [0, *ours[:-1]]
    assert theirs[-1] == Fraction(9, 10)  # (11 - 2) / (12 - 2): their last iteration is not yet at alpha


def test_refuses_a_schedule_without_room() -> None:
    for iterations in (80, 100):  # J = 8 and, with no step between, 10
        with pytest.raises(ValueError, match="must exceed warmup = 10"):
            schedule_progress(1, iterations, 10, Fraction("0.1"))
