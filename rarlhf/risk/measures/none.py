"""`none`: the mean return, plain RLHF."""

from fractions import Fraction
from typing import ClassVar

from torch import Tensor

from rarlhf.risk.measures.base import Batch, RiskMeasure, Treatment, everything


class RiskNeutral(RiskMeasure):
    """Maximises the mean return over all episodes."""

    reads: ClassVar[tuple[str, ...]] = ()

    def level(self, progress: Fraction) -> Fraction:
        """1 at all times."""
        return Fraction(1)

    def value(self, returns: Tensor, progress: Fraction) -> Tensor:
        """Mean of R."""
        return returns.mean()

    def treat(self, batch: Batch, progress: Fraction) -> Treatment:
        """All episodes with their own rewards."""
        return everything(batch)
