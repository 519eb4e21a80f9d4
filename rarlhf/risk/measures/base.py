"""What a risk measure is to the trainer: which episodes train, on which utility, and what the measure maximises.

Values are rewards, so risk is the lower tail. v_1..v_B are what the measure is of (params `risk.of`), of the whole
batch: the returns R, which have the KL penalty in them, or the scores s, which do not.

A measure either *selects* (drops episodes, rewards untouched) or turns each value into a *utility* u. The trainer
places it at the episode's last real token (`rarlhf.rl.advantages`). A utility of the return replaces the KL penalty; to
one of the score, every episode's own penalty is added.

For an objective whose derivative with respect to the distribution is f(v), the utility is f(v) - beta (f'(v) - 1). R
holds -beta log pi, so that a step in the policy moves the returns themselves as well as how likely they are; the + beta
is a constant without effect on the gradient, and makes u = v for f(v) = v. Scores hold no log pi: their beta is 0.
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
    values: Tensor  # (B,) float, v: what the measure is of, the returns or the scores
    response_mask: Tensor  # (B, T) bool, True = real token
    ranking: Tensor  # (B,) float, the value by which episodes are ranked (params `risk.ranking`)
    kl_coef: float  # score units per nat, the weight of -log pi in the values: beta in returns, 0 in scores
    weights: Sequence[Fraction] | None = None  # B numbers, p(x) / q(x) of the prompts; None: all drawn from p


class Treatment(NamedTuple):
    """What the PPO epochs train on."""

    kept: Tensor  # (B,) bool, the episodes that are put through the epochs
    utility: Tensor | None = None  # (B,) float, score units, for the last real token; None: none
    own_share: float = 1.0  # weight with which an episode's own value stays beside its utility


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

    @property
    def of_score(self) -> bool:
        """Whether it is of the scores, with the KL penalty outside; a measure that does not read `of` is of returns."""
        return "of" in self.reads and self.params.of == "score"

    @abstractmethod
    def value(self, values: Tensor, level: RiskLevel) -> Tensor:
        """The objective on a batch of values (B,): () float, score units, never above the mean."""

    @abstractmethod
    def treat(self, batch: Batch, level: RiskLevel) -> Treatment:
        """What is trained on at a level of the schedule; at progress 0 all episodes with their own rewards."""


def everything(batch: Batch) -> Treatment:
    """All episodes with their own rewards: the risk-neutral treatment."""
    return Treatment(torch.ones_like(batch.ranking, dtype=torch.bool))


def utilities(batch: Batch, utility: Tensor, own_share: float = 0.0) -> Treatment:
    """All episodes, each with its utility (B,), and with `own_share` of its own value."""
    return everything(batch)._replace(utility=utility, own_share=own_share)
