"""The KL that the controller sees, and the controller."""

import math

import pytest
import torch

from rarlhf.config.params import KLParams, Params
from rarlhf.rl.kl import adapted_kl_coef, controlled_kl, next_kl_coef

EPISODE_KL = torch.tensor([1.0, 2.0, 6.0, 7.0])
TAIL = torch.tensor([True, True, False, False])


def test_the_three_averages() -> None:
    assert controlled_kl(EPISODE_KL, TAIL, "all") == 4.0  # 16 / 4
    assert controlled_kl(EPISODE_KL, TAIL, "kept") == 1.5  # 3 / 2
    assert controlled_kl(EPISODE_KL, TAIL, "kept_over_batch") == 0.75  # 3 / 4: half of the kept average


@pytest.mark.parametrize(
    ("kl", "factor"),
    [
        (6.0, 1.0),  # on target
        (6.6, 1.00128),  # 10 % above: 1 + .1 * .0128
        (60.0, 1.00256),  # far above: clipped at 20 %
        (-3.0, 0.99744),  # negative estimate: clipped at -20 %
    ],
)
def test_controller_by_hand(kl: float, factor: float) -> None:
    assert adapted_kl_coef(0.2, kl, target=6.0, rate=0.0128) == pytest.approx(0.2 * factor, rel=1e-12)


def test_rate_zero_keeps_the_coefficient() -> None:
    assert adapted_kl_coef(0.2, 60.0, target=6.0, rate=0.0) == 0.2


PID = KLParams(
    coef=0.5,
    target=2.0,
    controller="pid",
    rate=0.1,
    proportional=0.1,
    integral=0.02,
    window=2,
    average="all",
    stop_above=None,
)


@pytest.mark.parametrize(
    ("readings", "expected"),  # by how much log beta moves
    [
        ([2.0, 2.0, 2.0], 0.0),  # on target
        ([2.2, 2.2, 2.2], 0.02 * math.log(1.1)),  # 10 % above, at rest: the integral alone
        # means of two: 2.2, then 2.1: .1 log(2.1 / 2.2) = -.0047 and .02 log(1.05) = .0010
        ([9.0, 2.2, 2.2, 2.0], 0.1 * math.log(2.1 / 2.2) + 0.02 * math.log(1.05)),
        ([-0.3], -0.02),  # the first one, estimated below 0: the error is -1, and has not changed
        ([0.0, 4.0], 0.1),  # from -1 to 0, and then on target
        ([40.0, 40.0], 0.02),  # twenty times the target: the error counts as 1
        ([2.0, 2.0, 40.0], 0.1 + 0.02),  # from 0 to 1
    ],
)
def test_pid_by_hand(readings: list[float], expected: float) -> None:
    assert math.log(next_kl_coef(0.5, readings, PID) / 0.5) == pytest.approx(expected, abs=1e-12)


def test_the_proportional_part_is_given_back() -> None:
    """What a peak of the KL adds to log beta beside the integral is gone when the peak is."""
    readings, kl_coef = [2.0, 2.0], 0.5
    peak = [40.0, 40.0, 0.1, 2.0, 2.0]
    for reading in peak:
        readings.append(reading)
        kl_coef = next_kl_coef(kl_coef, readings, PID)
    errors = [1.0, 1.0, 1.0, math.log(2.1 / 4), 0.0]  # means 21, 40, 20.05, 1.05 and 2 for a target of 2
    assert math.log(kl_coef / 0.5) == pytest.approx(0.02 * sum(errors))


def test_the_paper_controller_reads_the_last_kl_alone() -> None:
    paper = PID.model_copy(update={"controller": "paper"})
    assert next_kl_coef(0.5, [99.0, 2.2], paper) == adapted_kl_coef(0.5, 2.2, 2.0, 0.1)


@pytest.mark.parametrize(("reading", "end"), [(-1.0, 0.005), (400.0, 50.0)])
def test_pid_stays_within_a_factor_of_100_of_its_start(reading: float, end: float) -> None:
    kl_coef, readings = 0.5, [reading]
    for _ in range(300):  # log(100) / .02 = 230 to the bound
        kl_coef = next_kl_coef(kl_coef, readings, PID)
        readings.append(reading)
    assert kl_coef == pytest.approx(end)
    back = next_kl_coef(kl_coef, [*readings, *[4.0 if reading < 0 else 1.0] * 2], PID)
    assert (back > kl_coef) if reading < 0 else (back < kl_coef)  # nothing has wound up: the way back begins at once


def simulated(kl: KLParams, wanted_coef: float, noise: float, iterations: int = 80) -> list[float]:
    """KL per iteration of a policy that answers late: it goes an eighth of the way to target x (wanted / beta)^2.

    That is the KL of the best policy for scores with a normal distribution, which is variance / (2 beta^2).
    """
    draws = torch.randn(iterations, generator=torch.Generator().manual_seed(3)).tolist()
    kl_coef, true, readings = kl.coef, 0.0, []
    for iteration in range(1, iterations + 1):
        readings.append(true * (1 + noise * draws[iteration - 1]))
        kl_coef = next_kl_coef(kl_coef, readings, kl)
        true += (kl.target * (wanted_coef / kl_coef) ** 2 - true) / 8
    return readings


@pytest.mark.parametrize("start", [0.4, 1.0, 2.5])  # of beta, as a multiple of the one that holds the target
@pytest.mark.parametrize("target", [0.5, 2.0, 6.0])
def test_pid_ends_on_its_target_from_a_start_that_is_off(start: float, target: float, params: Params) -> None:
    kl = params.kl.model_copy(update={"target": target, "coef": 0.6 * start})
    last = simulated(kl, 0.6, noise=0.15)[-10:]
    assert sum(last) / 10 == pytest.approx(target, rel=0.1)


def test_the_paper_controller_does_not(params: Params) -> None:
    """Negative control: the simulation tells the two apart."""
    kl = params.kl.model_copy(update={"controller": "paper", "coef": 0.6 * 2.5, "rate": 0.0128})
    assert sum(simulated(kl, 0.6, noise=0.15)[-10:]) / 10 < 0.5 * kl.target
