"""The soft-risk schedule against hand counts."""

from fractions import Fraction

import pytest

from rarlhf.config.params import Params, RiskParams
from rarlhf.risk.schedule import RiskLevel, RiskSchedule


@pytest.fixture
def risk(params: Params) -> RiskParams:
    return params.risk.model_copy(update={"alpha": 0.4, "count_from": 1})


def schedule(risk: RiskParams, iterations: int, warmup: int, rho: float, **edits: object) -> RiskSchedule:
    return RiskSchedule(risk.model_copy(update={"warmup": warmup, "rho": rho, **edits}), iterations)


def progress(given: RiskSchedule, iterations: int) -> list[Fraction]:
    """Of each iteration from 1 to the last."""
    return [given.at(iteration).progress for iteration in range(1, iterations + 1)]


def test_progress_of_a_small_run(risk: RiskParams) -> None:
    # M 12, n 2, rho .95: J = ceil(11.4) = 12, a tenth an iteration from the second on
    tenths = [0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
    assert progress(schedule(risk, 12, 2, 0.95), 12) == [Fraction(k, 10) for k in tenths]
    # rho .5: J = 6, a quarter an iteration, and the final level from the sixth on
    quarters = [0, 0, 1, 2, 3, 4, 4, 4, 4, 4, 4, 4]
    assert progress(schedule(risk, 12, 2, 0.5), 12) == [Fraction(k, 4) for k in quarters]


def test_kept_episodes_are_those_of_the_level_rounded_up(risk: RiskParams) -> None:
    # B 10 and alpha .4, .06 less at each tenth: 1, .94, .88, .82, .76, .7, .64, .58, .52, .46, .4
    levels = [schedule(risk, 12, 2, 0.95).at(iteration) for iteration in range(2, 13)]
    assert [level.alpha for level in levels] == [Fraction(100 - 6 * k, 100) for k in range(11)]
    assert [level.kept(10) for level in levels] == [10, 10, 9, 9, 8, 7, 7, 6, 6, 5, 4]


def test_counts_are_exact_where_floats_are_not(risk: RiskParams) -> None:
    level = RiskLevel(Fraction(1), Fraction("0.28"))
    assert level.kept(25) == 7  # .28 * 25 is 7.000000000000001 in floats, whose ceiling is 8
    assert schedule(risk, 25, 2, 0.28).end == 7


def test_the_papers_schedule(risk: RiskParams) -> None:
    # M 194, n 30, rho .95: J = ceil(184.3) = 185, so 1 / 155 an iteration
    steps = progress(schedule(risk, 194, 30, 0.95), 194)
    assert steps == sorted(steps)
    assert steps[:30] == [0] * 30  # m = n is still risk-neutral
    assert steps[30] == Fraction(1, 155)
    assert steps[183] == Fraction(154, 155)
    assert steps[184:] == [1] * 10  # from m = J on


def test_counting_from_zero_is_one_iteration_late(risk: RiskParams) -> None:
    ours = progress(schedule(risk, 12, 2, 0.95), 12)
    theirs = progress(schedule(risk, 12, 2, 0.95, count_from=0), 12)
    assert theirs == [0, *ours[:-1]]
    assert theirs[-1] == Fraction(9, 10)  # (11 - 2) / (12 - 2): their last iteration is not yet at alpha


def test_refuses_a_schedule_without_room(risk: RiskParams) -> None:
    for iterations in (80, 100):  # J = 8 and, with no step between, 10
        with pytest.raises(ValueError, match="must exceed warmup = 10"):
            schedule(risk, iterations, 10, 0.1)


def test_plain_rlhf_needs_no_room_and_has_the_level_one(risk: RiskParams) -> None:
    plain = schedule(risk, 80, 10, 0.1, measure="none")  # J = 8
    assert {plain.at(iteration).alpha for iteration in range(1, 81)} == {1}


def test_the_value_warm_up_before_the_first_iteration_is_risk_neutral(params: Params) -> None:
    values = {"measure": "none", "warmup": 1, "rho": 0.01}  # J = 1 = n: no room, and the measure needs none
    given = RiskSchedule(params.risk.model_copy(update=values), 80)
    assert [given.at(m).progress for m in (-7, 0, 1, 2)] == [0, 0, 0, 1]
