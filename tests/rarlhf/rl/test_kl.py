"""The KL that the controller sees, and the controller."""

import pytest
import torch

from rarlhf.rl.kl import adapted_kl_coef, controlled_kl

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
