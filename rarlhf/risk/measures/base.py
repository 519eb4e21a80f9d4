"""What a risk measure is to the trainer: which episodes train, on which token rewards, and what it maximises.

Returns are rewards, so risk is the lower tail. R_1..R_B are the returns of the whole batch with the KL penalty in them.

A measure either *selects* (drops episodes, rewards untouched) or turns each return into a *utility* u: an episode's
rewards become u at its last real token, in place of score and KL penalty. For an objective whose derivative with
respect to the distribution is f(R), the utility is f(R) - beta f'(R): R holds -beta log pi, so that a step in the
policy moves the returns themselves as well as how likely they are. For f(R) = R the second term is a constant without
effect.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from fractions import Fraction
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from rarlhf.config.params import RiskParams


class Batch(NamedTuple):
    """What a measure sees of a rollout; under several processes, of the global batch's returns."""

    rewards: Tensor  # (B, T) float, per token: score units, KL penalty included, zero on padding
    response_mask: Tensor  # (B, T) bool
    ranking: Tensor  # (B,) float, what the worst episodes are worst in (params `risk.ranking`)
    kl_coef: float  # beta, score units per nat
    weights: Sequence[Fraction] | None = None  # B numbers, p(x) / q(x) of the prompts; None: all drawn from p

    @property
    def returns(self) -> Tensor:
        """(B,) float, R: the sum of an episode's rewards."""
        return self.rewards.sum(dim=1)


class Treatment(NamedTuple):
    """What the PPO epochs train on."""

    rewards: Tensor  # (B, T) float, zero on padding
    tail_mask: Tensor  # (B,) bool, the episodes that are put through the epochs


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

    def level(self, progress: Fraction) -> Fraction:
        """Alpha' of the soft-risk schedule: 1 at progress 0, `risk.alpha` at progress 1, a line between."""
        return 1 - (1 - self.params.level) * progress

    @abstractmethod
    def value(self, returns: Tensor, progress: Fraction) -> Tensor:
        """The objective on a batch of returns (B,): () float, score units, never above the mean."""

    @abstractmethod
    def treat(self, batch: Batch, progress: Fraction) -> Treatment:
        """What is trained on, at `progress` in [0, 1] of the schedule; at 0 all episodes with their own rewards."""


def everything(batch: Batch) -> Treatment:
    """All episodes with their own rewards: the risk-neutral treatment."""
    return Treatment(batch.rewards, torch.ones_like(batch.ranking, dtype=torch.bool))


def utilities(batch: Batch, utility: Tensor) -> Treatment:
    """All episodes, each with its utility (B,) at its last real token and nothing else."""
    return everything(batch._replace(rewards=terminal_rewards(utility, batch.response_mask)))


def terminal_rewards(scores: Tensor, response_mask: Tensor) -> Tensor:
    """(B, T) float, zero but for `scores` (B,) at each row's last real token of `response_mask` (B, T)."""
    last = response_mask.sum(dim=1, keepdim=True) - 1
    return torch.zeros_like(response_mask, dtype=scores.dtype).scatter(1, last, scores.unsqueeze(1))
