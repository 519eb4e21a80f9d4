"""The soft-risk schedule: how many episodes of a batch are kept at each iteration (paper, section 4 and Algorithm 1).

Counting is done in exact rationals: in floats ceil(0.28 * 25) is 8, not 7.
"""

from fractions import Fraction
from math import ceil


def schedule_end(iterations: int, rho: Fraction) -> int:
    """J = ceil(rho * M), the first iteration at which the final level alpha holds."""
    return ceil(rho * iterations)


def schedule_progress(iteration: int, iterations: int, warmup: int, rho: Fraction) -> Fraction:
    """How far the schedule has gone from risk-neutral (0) to the measure's final parameters (1).

    Args:
        iteration: m in 1..M, or in 0..M - 1 to count as the authors' code does.
        iterations: M.
        warmup: n, the last iteration that is risk-neutral.
        rho: share of the iterations after which the final parameters hold, in (0, 1].
    Returns: 0 for m <= n, 1 for m >= J, (m - n) / (J - n) between. With it the level alpha' is
        1 - (1 - alpha) progress, which is the paper's max(alpha, 1 - K (m - n)) with K = (1 - alpha) / (J - n).
    Raises: ValueError if J <= n, that is if there is no room for the descent.
    Source: paper, section 4 (m counted from 1; the authors' code counts from 0).
    """
    end = schedule_end(iterations, rho)
    if end <= warmup:
        raise ValueError(f"ceil(rho * iterations) = {end} must exceed warmup = {warmup}")
    return min(max(Fraction(iteration - warmup, end - warmup), Fraction(0)), Fraction(1))


def kept_episodes(batch_size: int, level: Fraction) -> int:
    """B' = ceil(B * level), exactly."""
    return ceil(batch_size * level)
