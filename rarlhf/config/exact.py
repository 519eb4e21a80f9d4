"""Numbers of section `risk` as the exact rationals that they are written as: in floats ceil(0.28 * 25) is 8, not 7."""

from fractions import Fraction
from math import ceil

WITHOUT_LEVEL = ("none", "entropic")  # risk measures that do not read `risk.alpha`


def final_level(measure: str, alpha: float) -> Fraction:
    """`risk.alpha` exactly; 1 for a measure that singles out no share of the episodes."""
    return Fraction(1) if measure in WITHOUT_LEVEL else Fraction(str(alpha))


def schedule_end(rho: float, iterations: int) -> int:
    """J = ceil(rho M): the first of M iterations at which the risk schedule has reached its final level."""
    return ceil(Fraction(str(rho)) * iterations)
