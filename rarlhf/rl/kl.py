"""The KL controller: which KL it reads, and how it changes the KL coefficient."""

from typing import Literal

import torch
from torch import Tensor

KLAverage = Literal["all", "kept", "kept_over_batch"]


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
