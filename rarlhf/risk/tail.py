"""Lower-tail risk of episode returns. Returns are rewards, so risk is the lower tail and a higher number is better.

A level is a share alpha in (0, 1] of the episodes; 1 is risk-neutral. R_(1) <= ... <= R_(B) are the sorted returns.
There are two tail means with two names: training keeps whole episodes (the ceil(alpha B) lowest, `worst_episodes`),
reports use the fractional `cvar`, which equals the Rockafellar-Uryasev maximum.
"""

from fractions import Fraction
from math import ceil, floor

import torch
from torch import Tensor


def worst_episodes(ranking: Tensor, count: int) -> Tensor:
    """Marks the `count` episodes with the lowest ranking value.

    Args:
        ranking: (B,) float, the value by which episodes are ranked; of the whole batch.
        count: B' in 1..B.
    Returns: (B,) bool tail mask with exactly `count` True; ties go to the lower index.
    Raises: ValueError if `count` is outside 1..B or a value is NaN.
    Source: paper, Algorithm 1 (B' worst episodes of the batch).
    """
    if not 1 <= count <= len(ranking):
        raise ValueError(f"count must be in 1..{len(ranking)}, got {count}")
    if torch.isnan(ranking).any():
        raise ValueError("an episode's ranking value is NaN")
    tail_mask = torch.zeros(len(ranking), dtype=torch.bool, device=ranking.device)
    tail_mask[torch.sort(ranking, stable=True).indices[:count]] = True
    return tail_mask


def value_at_risk(returns: Tensor, level: float | Fraction) -> Tensor:
    """The lower quantile R_(ceil(alpha B)).

    Args:
        returns: (B,) float, any order.
        level: alpha in (0, 1].
    Returns: () float, same units.
    Raises: ValueError if `level` is outside (0, 1] or B is 0.
    """
    count = ceil(_exact(returns, level))
    return torch.sort(returns).values[count - 1]


def cvar(returns: Tensor, level: float | Fraction) -> Tensor:
    """Mean of the worst `level` share of returns, the last one counted by its fraction.

    [sum of the floor(alpha B) lowest + (alpha B - floor) x next] / (alpha B), which is
    max over eta of eta - mean(max(eta - R, 0)) / alpha.

    Args:
        returns: (B,) float, any order.
        level: alpha in (0, 1]; 1 gives the plain mean.
    Returns: () float, same units, never above the mean.
    Raises: ValueError if `level` is outside (0, 1] or B is 0.
    Source: Rockafellar and Uryasev 2000, for the lower tail.
    """
    mass = _exact(returns, level)
    whole = floor(mass)
    ordered = torch.sort(returns).values
    total = ordered[:whole].sum()
    if mass > whole:
        total = total + float(mass - whole) * ordered[whole]
    return total / float(mass)


def _exact(returns: Tensor, level: float | Fraction) -> Fraction:
    """Alpha * B as an exact rational."""
    alpha = level if isinstance(level, Fraction) else Fraction(str(level))
    if not 0 < alpha <= 1:
        raise ValueError(f"level must be in (0, 1], got {level}")
    if returns.ndim != 1 or len(returns) == 0:
        raise ValueError(f"returns must be a non-empty vector, got shape {tuple(returns.shape)}")
    return alpha * len(returns)
