"""PPO's clipped losses, per token (Schulman et al. 2017, arXiv 1707.06347); the trainer averages over real tokens."""

import torch
from torch import Tensor


def policy_loss(ratio: Tensor, advantages: Tensor, clip: float) -> Tensor:
    """Clipped surrogate loss max(-A r, -A clip(r, 1 - c, 1 + c)).

    Args:
        ratio: (B, T) float, exp(new log-probability - the one at sampling).
        advantages: (B, T) float, constants.
        clip: c in (0, 1).
    Returns: (B, T) float; minus the advantage where the ratio is 1.
    Source: arXiv 1707.06347, Eq. 7; paper, Eq. 11.
    """
    return torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1.0 - clip, 1.0 + clip))


def value_loss(new_values: Tensor, values: Tensor, returns: Tensor, value_clip: float | None) -> Tensor:
    """Half the squared error of the critic, the larger of the plain and the clipped one.

    Args:
        new_values: (B, T) float, under the current weights.
        values: (B, T) float, at sampling time.
        returns: (B, T) float, value targets.
        value_clip: largest counted change from `values`, in score units; None for the plain squared error.
    Returns: (B, T) float, not negative.
    Source: the authors' code (0.5 * max(.)^2); the paper's Eq. 13 writes a signed mean(V - R), which has no minimum.
    """
    error = (new_values - returns).square()
    if value_clip is not None:
        clipped = values + (new_values - values).clamp(-value_clip, value_clip)
        error = torch.maximum(error, (clipped - returns).square())
    return 0.5 * error


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of `x` over the True entries of `mask`, of the same shape (B, T); () float."""
    return torch.where(mask, x, torch.zeros_like(x)).sum() / mask.sum()
