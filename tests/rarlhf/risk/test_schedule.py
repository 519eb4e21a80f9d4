"""The soft-risk schedule against hand counts."""

from fractions import Fraction

import pytest

from rarlhf.risk.schedule import kept_episodes, schedule_end, schedule_progress


def progress(iterations: int, warmup: int, rho: str) -> list[Fraction]:
    """Of each iteration from 1 to the last."""
    return [schedule_progress(m, iterations, warmup, Fraction(rho)) for m in range(1, iterations + 1)]


def test_progress_of_a_small_run() -> None:
    # M 12, n 2, rho .95: J = ceil(11.4) = 12, a tenth an iteration from the second on
    tenths = [0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
    assert progress(12, 2, "0.95") == [Fraction(k, 10) for k in tenths]
    # rho .5: J = 6, a quarter an iteration, and the final level from the sixth on
    quarters = [0, 0, 1, 2, 3, 4, 4, 4, 4, 4, 4, 4]
    assert progress(12, 2, "0.5") == [Fraction(k, 4) for k in quarters]


def test_kept_episodes_are_those_of_the_level_rounded_up() -> None:
    # B 10 and alpha .4, .06 less at each tenth: 1, .94, .88, .82, .76, .7, .64, .58, .52, .46, .4
    levels = [Fraction(100 - 6 * k, 100) for k in range(11)]
    assert [kept_episodes(10, level) for level in levels] == [10, 10, 9, 9, 8, 7, 7, 6, 6, 5, 4]


def test_counts_are_exact_where_floats_are_not() -> None:
    assert kept_episodes(25, Fraction("0.28")) == 7  # .28 * 25 is 7.000000000000001 in floats, whose ceiling is 8
    assert schedule_end(25, Fraction("0.28")) == 7


def test_the_papers_schedule() -> None:
    # M 194, n 30, rho .95: J = ceil(184.3) = 185, so 1 / 155 an iteration
    steps = progress(194, 30, "0.95")
    assert steps == sorted(steps)
    assert steps[:30] == [0] * 30  # m = n is still risk-neutral
    assert steps[30] == Fraction(1, 155)
    assert steps[183] == Fraction(154, 155)
    assert steps[184:] == [1] * 10  # from m = J on


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
