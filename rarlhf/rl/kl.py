"""The KL controller: which KL it reads, how it changes the KL coefficient, and which KL is a runaway."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from rarlhf.config.params import KLParams

KLAverage = Literal["all", "kept", "kept_over_batch"]
# Of the PID controller. Its error counts at most as much as a KL that is e times too high or too low: a first batch,
# whose KL is 0 or estimated below it, says no more than that, and a beta that rises fast makes the critic's loss, which
# grows as beta squared, drive the shared weights. Beta stays within a factor of 100 of its start: where the score
# cannot buy the target, or a rate too high ignores beta, it would go on for ever and not come back within a training.
CLIPPED_ERROR = 1.0
RANGE = 100.0


def controlled_kl(episode_kl: Tensor, tail_mask: Tensor, average: KLAverage) -> float:
    """Mean summed log-ratio of the episodes that the controller reads, in nats per response (the k1 estimator).

    Args:
        episode_kl: (B,) float, sum over real tokens of log pi - log pi_ref; single episodes may be negative.
        tail_mask: (B,) bool, episodes kept.
        average: `all` episodes; the `kept` ones (paper, Eq. 6); `kept_over_batch` divides the kept ones' sum by B, as
            the authors' code does: the result is too low by the share kept.
    """
    if average == "all":
        return float(episode_kl.mean())
    kept = torch.where(tail_mask, episode_kl, torch.zeros_like(episode_kl)).sum()
    return float(kept / (tail_mask.sum() if average == "kept" else len(episode_kl)))


def next_kl_coef(kl_coef: float, readings: Sequence[float], kl: KLParams) -> float:
    """Beta of the next iteration, by the controller `kl.controller`.

    Args:
        kl_coef: beta of this iteration, score units per nat.
        readings: `controlled_kl` of the iterations so far, this one last, at least one.
        kl: the section of the params.
    """
    if kl.controller == "paper":
        return adapted_kl_coef(kl_coef, readings[-1], kl.target, kl.rate)
    return pid_kl_coef(kl_coef, readings, kl)


def adapted_kl_coef(kl_coef: float, kl: float, target: float, rate: float) -> float:
    """Beta (1 + clip(KL / target - 1, -0.2, 0.2) K_beta): more penalty where KL is above its target.

    Args:
        kl_coef: beta, score units per nat.
        kl: nats per response.
        target: nats per response, above 0.
        rate: K_beta, at least 0; 0 leaves beta as it is.
    Source: paper, Eq. 6; Ziegler et al. 2019 (arXiv 1909.08593), section 2.2.
    """
    error = min(max(kl / target - 1.0, -0.2), 0.2)
    return kl_coef * (1.0 + error * rate)


def pid_kl_coef(kl_coef: float, readings: Sequence[float], kl: KLParams) -> float:
    """Beta exp(proportional * (e - e') + integral * e), with e the error of now and e' that of the iteration before.

    The error is log(mean KL of the last `window` iterations / target). In this velocity form log beta itself is the sum
    of the errors: nothing winds up behind its bounds, and a resumed training needs no more than beta and the readings.

    Args:
        kl_coef: beta, score units per nat, above 0.
        readings: nats per response of the iterations so far, this one last.
        kl: gains, window, target and the start of beta.
    Source: Stooke et al. 2020 (arXiv 2007.03964), algorithm 2, here on log beta and without the derivative.
    """
    error = kl_error(readings, kl)
    before = kl_error(readings[:-1], kl) if len(readings) > 1 else error
    moved = math.log(kl_coef) + kl.proportional * (error - before) + kl.integral * error
    return math.exp(min(max(moved, math.log(kl.coef / RANGE)), math.log(kl.coef * RANGE)))


def kl_error(readings: Sequence[float], kl: KLParams) -> float:
    """log(mean KL of the window / target), within `CLIPPED_ERROR`; the lowest where the mean is not above 0."""
    last = readings[-kl.window :]
    share = sum(last) / len(last) / kl.target
    return min(max(math.log(share), -CLIPPED_ERROR), CLIPPED_ERROR) if share > 0 else -CLIPPED_ERROR
