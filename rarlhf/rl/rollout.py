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
    """What the PPO epochs train on, B' rows: kept episodes only, or all where the dropped ones pay the KL penalty."""

    episodes: Episodes
    logprobs: Tensor  # (B', T)
    values: Tensor  # (B', T)
    advantages: Tensor  # (B', T), whitened over the kept real tokens
    returns: Tensor  # (B', T), value targets
    kept: Tensor  # (B',) bool, the episodes from which the critic learns

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
    measured = rollout.logprobs[tail_mask], rollout.values[tail_mask]
    return Targets(episodes, *measured, whitened, returns[tail_mask], tail_mask[tail_mask])


def with_dropped(rollout: Rollout, advantages: Tensor, returns: Tensor, tail_mask: Tensor, penalty: Tensor) -> Targets:
    """All episodes: the kept ones as `select` has them, and the dropped ones with the KL penalty alone.

    Args:
        rollout: B episodes.
        advantages: (B, T) float of the kept episodes, whitened; of the dropped ones it is not read.
        returns: (B, T) float, value targets; only those of kept episodes are learned.
        tail_mask: (B,) bool, episodes kept.
        penalty: (B, T) float, discounted sum of the KL penalties from each token on, in the scale of `advantages`.
    """
    dropped = rollout.episodes.response_mask & ~tail_mask.unsqueeze(1)
    centred = penalty - penalty[dropped].mean() if dropped.any() else penalty
    paid = torch.where(dropped, centred, advantages)
    return Targets(rollout.episodes, rollout.logprobs, rollout.values, paid, returns, tail_mask)


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
