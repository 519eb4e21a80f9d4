"""`none`: the mean return, plain RLHF."""

from typing import ClassVar

from torch import Tensor

from rarlhf.risk.measures.base import Batch, RiskMeasure, Treatment, everything
from rarlhf.risk.schedule import RiskLevel


class RiskNeutral(RiskMeasure):
    """Maximises the mean return over all episodes."""

    reads: ClassVar[tuple[str, ...]] = ()

    def value(self, values: Tensor, level: RiskLevel) -> Tensor:
        """Mean of the returns."""
        return values.mean()

    def treat(self, batch: Batch, level: RiskLevel) -> Treatment:
        """All episodes with their own rewards."""
        return everything(batch)
