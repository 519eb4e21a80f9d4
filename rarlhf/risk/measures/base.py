"""What a risk measure is to the trainer: which episodes train, on which utility, and what the measure maximises.

Returns are rewards, so risk is the lower tail. R_1..R_B are the returns of the whole batch with the KL penalty in them.

A measure either *selects* (drops episodes, rewards untouched) or turns each return into a *utility* u. The trainer
places it at the episode's last real token and decides what becomes of the KL penalty (`rarlhf.rl.advantages`). For an
objective whose derivative with respect to the distribution is f(R), the utility is f(R) - beta f'(R): R holds
-beta log pi, so that a step in the policy moves the returns themselves as well as how likely they are. For f(R) = R the
second term is a constant without effect.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from fractions import Fraction
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from rarlhf.config.params import RiskParams
from rarlhf.risk.schedule import RiskLevel


class Batch(NamedTuple):
    """What a measure sees of a rollout; under several processes, of the whole batch."""

    scores: Tensor  # (B,) float, the reward model's values, without the KL penalty
    returns: Tensor  # (B,) float, R: score units, KL penalty included
    response_mask: Tensor  # (B, T) bool, True = real token
    ranking: Tensor  # (B,) float, the value by which episodes are ranked (params `risk.ranking`)
    kl_coef: float  # beta, score units per nat: the weight of -log pi in R
    weights: Sequence[Fraction] | None = None  # B numbers, p(x) / q(x) of the prompts; None: all drawn from p


class Treatment(NamedTuple):
    """What the PPO epochs train on."""

    kept: Tensor  # (B,) bool, the episodes that are put through the epochs
    utility: Tensor | None = None  # (B,) float, score units, for the last real token; None: none
    own_share: float = 1.0  # weight with which an episode's own rewards stay beside its utility


class RiskMeasure(ABC):
    """One risk measure with its parameters.

    Attributes:
        reads: keys of section `risk` that decide its results, besides `measure` and `critic`.
        state: what it carries from iteration to iteration.
    """

    reads: ClassVar[tuple[str, ...]]

    def __init__(self, params: RiskParams) -> None:
        self.params = params
        self.state: dict[str, float] = {}

    @abstractmethod
    def value(self, returns: Tensor, level: RiskLevel) -> Tensor:
        """The objective on a batch of returns (B,): () float, score units, never above the mean."""

    @abstractmethod
    def treat(self, batch: Batch, level: RiskLevel) -> Treatment:
        """What is trained on at a level of the schedule; at progress 0 all episodes with their own rewards."""


def everything(batch: Batch) -> Treatment:
    """All episodes with their own rewards: the risk-neutral treatment."""
    return Treatment(torch.ones_like(batch.ranking, dtype=torch.bool))


def utilities(batch: Batch, utility: Tensor, own_share: float = 0.0) -> Treatment:
    """All episodes, each with its utility (B,), and with `own_share` of its own rewards."""
    return everything(batch)._replace(utility=utility, own_share=own_share)
