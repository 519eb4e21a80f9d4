"""The KL controller: which KL it reads, how it changes the KL coefficient, and which KL is a runaway."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from rarlhf.config.params import KLParams

KLAverage = Literal["all", "kept", "kept_over_batch"]
# Of the PID controller. The error counts at most as much as the target: ten times the target says no more than twice.
# Beta moves by at most a tenth per iteration. Faster, the critic's values lag behind the penalty, and its loss, which
# grows as beta squared, drives the shared weights. Beta stays within a factor of 100 of its start: beyond, the score or
# the penalty is noise, and a way back would take longer than a training.
CLIPPED_ERROR = 1.0
CLIPPED_STEP = 0.1
RANGE = 100.0
SMALLEST = 0.1  # share of the target


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


def next_kl_coef(kl_coef: float, readings: Sequence[float], kl: KLParams, progress: float) -> float:
    """Beta of the next iteration, by the controller `kl.controller`.

    Args:
        kl_coef: beta of this iteration, score units per nat.
        readings: `controlled_kl` of the iterations so far, this one last, at least one.
        kl: the section of the params.
        progress: iterations done / all iterations, (0, 1].
    """
    if kl.controller == "paper":
        return adapted_kl_coef(kl_coef, readings[-1], kl.target, kl.rate)
    return pid_kl_coef(kl_coef, readings, kl, progress)


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


def pid_kl_coef(kl_coef: float, readings: Sequence[float], kl: KLParams, progress: float) -> float:
    """Beta exp(clip(proportional * (e - e') + integral * e)): e the error of now, e' of the iteration before.

    The error is (mean KL of the last `window` iterations - wanted KL) / target. log beta adds the changes up, so its
    limits cannot wind up a hidden integral, and nothing but beta and the readings has to be kept.

    Args:
        kl_coef: beta, score units per nat, above 0.
        readings: nats per response of the iterations so far, this one last.
        kl: gains, window, ramp, target and the start of beta.
        progress: iterations done / all iterations, (0, 1].
    Source: Stooke et al. 2020 (arXiv 2007.03964), algorithm 2, in velocity form and on log beta.
    """
    now = _log_kl(readings, kl)
    before = _log_kl(readings[:-1], kl) if len(readings) > 1 else now
    error = min(max(now - math.log(wanted_kl(kl, progress) / kl.target), -CLIPPED_ERROR), CLIPPED_ERROR)
    step = kl.proportional * (now - before) + kl.integral * error
    moved = math.log(kl_coef) + min(max(step, -CLIPPED_STEP), CLIPPED_STEP)
    low, high = math.log(kl.coef / RANGE), math.log(kl.coef * RANGE)
    return math.exp(min(max(moved, low), high))


def wanted_kl(kl: KLParams, progress: float) -> float:
    """The KL that the PID controller wants now: it rises in a line to the target over the first `ramp`."""
    return kl.target * min(progress / kl.ramp, 1.0) if kl.ramp > 0 else kl.target


def _log_kl(readings: Sequence[float], kl: KLParams) -> float:
    """log(mean KL of the window / target), at least that of a tenth of the target: small estimates may be negative."""
    last = readings[-kl.window :]
    return math.log(max(sum(last) / len(last) / kl.target, SMALLEST))
