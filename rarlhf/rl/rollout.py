"""Records of one PPO iteration, and how they are cut, joined and chosen from.

Letters for shapes: B episodes, B' kept episodes, T response tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

import torch
from torch import Tensor

from rarlhf.models.episodes import Episodes, stacked, widened
from rarlhf.rl.advantages import whiten


@dataclass(frozen=True)
class Rollout:
    """One sampling pass. Everything is constant: no gradient flows into it and nothing edits it."""

    episodes: Episodes
    logprobs: Tensor  # (B, T) float32, log-probabilities at sampling time
    ref_logprobs: Tensor  # (B, T) float32, under the reference policy
    values: Tensor  # (B, T) float32, critic at sampling time, score units
    entropy: Tensor  # (B, T) float32, nats
    scores: Tensor  # (B,) float32, reward model's value of query and response
    weights: Sequence[Fraction] | None = None  # B numbers, p(x) / q(x) where hard prompts are drawn more; None: all 1

    @property
    def log_ratio(self) -> Tensor:
        """(B, T) log pi - log pi_ref in nats, zero on padding: the k1 estimator of the KL per token."""
        return torch.where(self.episodes.response_mask, self.logprobs - self.ref_logprobs, 0.0)


class Targets(NamedTuple):
    """What the PPO epochs train on: kept episodes only, B' rows."""

    episodes: Episodes
    logprobs: Tensor  # (B', T)
    values: Tensor  # (B', T)
    advantages: Tensor  # (B', T), whitened over the kept real tokens
    returns: Tensor  # (B', T), value targets

    def rows(self, index: Tensor) -> "Targets":
        """The targets at `index` (int64), in that order."""
        return Targets(self.episodes.rows(index), *(field[index] for field in self[1:]))


class UpdateStats(NamedTuple):
    """Means over the optimiser steps of one update; of the ratios also the largest."""

    policy_loss: float
    value_loss: float
    clip_fraction: float  # share of kept tokens whose ratio left the clip range
    approx_kl: float  # mean of (ratio - 1) - log ratio over kept tokens, nats
    ratio_max: float
    skipped: float  # optimiser steps left out because their mean ratio was above max_ratio


def select(rollout: Rollout, advantages: Tensor, returns: Tensor, tail_mask: Tensor, centred: bool = True) -> Targets:
    """The kept episodes in batch order, their advantages whitened over their real tokens alone."""
    episodes = rollout.episodes.rows(tail_mask)
    whitened = whiten(advantages[tail_mask], episodes.response_mask, centred)
    return Targets(episodes, rollout.logprobs[tail_mask], rollout.values[tail_mask], whitened, returns[tail_mask])


def gathered(parts: list[Rollout], pad_id: int) -> Rollout:
    """Joins the processes' shares of a rollout."""
    return Rollout(
        stacked([part.episodes for part in parts], pad_id),
        widened([part.logprobs for part in parts], 0.0),
        widened([part.ref_logprobs for part in parts], 0.0),
        widened([part.values for part in parts], 0.0),
        widened([part.entropy for part in parts], 0.0),
        torch.cat([part.scores for part in parts]),
    )


def combined(steps: list[UpdateStats]) -> UpdateStats:
    """One update's numbers from those of its optimiser steps."""
    means = [sum(values) / len(steps) for values in zip(*steps, strict=True)]
    worst = max(step.ratio_max for step in steps)
    return UpdateStats(*means)._replace(ratio_max=worst, skipped=sum(step.skipped for step in steps))
