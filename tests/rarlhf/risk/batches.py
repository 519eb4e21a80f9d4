"""A batch of four episodes worked by hand, and a measure applied to a batch as the trainer applies it."""

from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import torch
from torch import Tensor

from rarlhf.config.params import Params, RiskParams
from rarlhf.risk.measures import risk_measure
from rarlhf.risk.measures.base import Batch
from rarlhf.risk.schedule import RiskSchedule
from rarlhf.rl.advantages import risk_rewards

RETURNS = torch.tensor([-3.0, -1.0, 0.0, 2.0])
BETA = 0.2
LENGTHS = torch.tensor([2, 1, 3, 2])
MASK = torch.arange(3) < LENGTHS.unsqueeze(1)
# Token rewards that sum to RETURNS: part of each at the first token, the rest at the last real one.
REWARDS = torch.tensor([[-1.0, -2.0, 0.0], [-1.0, 0.0, 0.0], [0.5, -0.5, 0.0], [1.0, 1.0, 0.0]])
ONE, HALF = Fraction(1), Fraction(1, 2)


class Trained(NamedTuple):
    """What the trainer makes of a measure's treatment."""

    rewards: Tensor
    kept: Tensor


class Scheduled:
    """A measure at a progress of its schedule, applied as the trainer applies it."""

    def __init__(self, params: RiskParams) -> None:
        self.measure, self.schedule = risk_measure(params), RiskSchedule(params, iterations=1000)

    def treat(self, given: Batch, progress: Fraction) -> Trained:
        treated = self.measure.treat(given, self.schedule.level(progress))
        own = REWARDS if given.response_mask is MASK else given.returns.unsqueeze(1)
        return Trained(risk_rewards(own, treated, given.response_mask), treated.kept)

    def value(self, returns: Tensor, progress: Fraction) -> Tensor:
        return self.measure.value(returns, self.schedule.level(progress))

    def alpha(self, progress: Fraction) -> Fraction:
        return self.schedule.level(progress).alpha

    @property
    def state(self) -> dict[str, float]:
        return self.measure.state


def measure(params: Params, **edits: object) -> Scheduled:
    return Scheduled(params.risk.model_copy(update={"alpha": 0.5, "temperature": 2.0, "mix": 0.5, **edits}))


def batch(returns: Tensor = RETURNS, weights: Sequence[Fraction] | None = None) -> Batch:
    mask = MASK if returns is RETURNS else torch.ones(len(returns), 1, dtype=torch.bool)
    return Batch(returns + 0.1, returns, returns, mask, returns, BETA, weights)


def at_the_end(utility: list[float]) -> Tensor:
    """(4, 3), the utilities at the last real tokens of MASK."""
    rewards = torch.zeros(4, 3)
    rewards[torch.arange(4), LENGTHS - 1] = torch.tensor(utility)
    return rewards
