"""The soft-risk schedule: the one owner of how risk-averse each iteration is (paper, section 4 and Algorithm 1).

Counting is done in exact rationals: in floats ceil(0.28 * 25) is 8, not 7.
"""

from fractions import Fraction
from math import ceil
from typing import NamedTuple

from rarlhf.config.exact import final_level, schedule_end
from rarlhf.config.params import RiskParams


class RiskLevel(NamedTuple):
    """How risk-averse an iteration is."""

    progress: Fraction  # of the schedule: 0 is risk-neutral, 1 is the measure with its final parameters
    alpha: Fraction  # alpha', the share of the episodes that are the tail; 1 is all of them

    def kept(self, batch_size: int) -> int:
        """B' = ceil(alpha' B), exactly."""
        return ceil(batch_size * self.alpha)


class RiskSchedule:
    """The level of each iteration of a training, from section `risk`."""

    def __init__(self, params: RiskParams, iterations: int) -> None:
        """Takes M, the number of iterations.

        Raises: ValueError if J = ceil(rho M) is not above the warm-up n, so that there is no room for the descent; the
            measure `none` needs none.
        """
        self.params = params
        self.end = schedule_end(params.rho, iterations)
        if params.measure != "none" and self.end <= params.warmup:
            raise ValueError(f"ceil(rho * iterations) = {self.end} must exceed warmup = {params.warmup}")

    def at(self, iteration: int) -> RiskLevel:
        """The level of an iteration, counted from 1.

        With m the iteration as `risk.count_from` counts, progress is 0 for m <= n, 1 for m >= J and (m - n) / (J - n)
        between. Alpha' is 1 - (1 - alpha) progress, which is the paper's max(alpha, 1 - K (m - n)) with
        K = (1 - alpha) / (J - n). Source: paper, section 4 (m counted from 1; the authors' code counts from 0).
        """
        m, n = iteration - 1 + self.params.count_from, self.params.warmup
        if m <= n:
            return self.level(Fraction(0))
        return self.level(Fraction(m - n, self.end - n) if m < self.end else Fraction(1))

    def level(self, progress: Fraction) -> RiskLevel:
        """The level at `progress` in [0, 1]."""
        return RiskLevel(progress, 1 - (1 - final_level(self.params.measure, self.params.alpha)) * progress)
