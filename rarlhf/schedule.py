"""The soft-risk schedule: how many episodes of a batch are kept at each iteration (paper, section 4 and Algorithm 1).

Counting is done in exact rationals: in floats ceil(0.28 * 25) is 8, not 7.
"""

from fractions import Fraction
from math import ceil


def schedule_end(iterations: int, rho: Fraction) -> int:
    """J = ceil(rho * M), the first iteration at which the final level alpha holds."""
    return ceil(rho * iterations)


def risk_level(iteration: int, iterations: int, alpha: Fraction, warmup: int, rho: Fraction) -> Fraction:
    """Share of episodes kept at `iteration`, before rounding up to whole episodes.

    Args:
        iteration: m in 1..M.
        iterations: M.
        alpha: final level in (0, 1].
        warmup: n, the last iteration that keeps every episode.
        rho: share of the iterations after which `alpha` holds, in (0, 1].
    Returns: 1 for m <= n, alpha for m >= J, max(alpha, 1 - K (m - n)) with K = (1 - alpha) / (J - n) between.
    Raises: ValueError if J <= n, that is if there is no room for the descent.
    Source: paper, section 4 (m counted from 1; the authors' code counts from 0).
    """
    end = schedule_end(iterations, rho)
    if end <= warmup:
        raise ValueError(f"ceil(rho * iterations) = {end} must exceed warmup = {warmup}")
    if iteration <= warmup:
        return Fraction(1)
    if iteration >= end:
        return alpha
    slope = (1 - alpha) / (end - warmup)
    return max(alpha, 1 - slope * (iteration - warmup))


def kept_episodes(batch_size: int, level: Fraction) -> int:
    """B' = ceil(B * level), exactly."""
    return ceil(batch_size * level)
