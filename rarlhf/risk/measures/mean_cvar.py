"""`mean_cvar`: (1 - lambda) mean + lambda CVaR, all episodes.

Each episode keeps (1 - lambda) of its own value: of its return token by token, of its score at the last token. The
utility is lambda times that of `cvar_ru`. Lambda is params `risk.mix`: 0 is plain RLHF, 1 is `cvar_ru`.
Source: Rockafellar and Uryasev 2000; the beta term as in `cvar_ru`.
"""

from typing import ClassVar

from torch import Tensor

from rarlhf.risk.measures.base import Batch, Treatment, everything, utilities
from rarlhf.risk.measures.cvar_ru import RockafellarUryasev
from rarlhf.risk.schedule import RiskLevel


class MeanCVaR(RockafellarUryasev):
    """Maximises the mixture of mean and CVaR at alpha'."""

    reads: ClassVar[tuple[str, ...]] = ("of", "alpha", "mix", "warmup", "rho", "count_from", "eta", "eta_rate")

    def value(self, values: Tensor, level: RiskLevel) -> Tensor:
        """(1 - lambda) mean + lambda CVaR, or its bound at a fixed eta."""
        return (1.0 - self.params.mix) * values.mean() + self.params.mix * super().value(values, level)

    def treat(self, batch: Batch, level: RiskLevel) -> Treatment:
        """All episodes with both shares of their value; the risk-neutral treatment while alpha' is 1."""
        mix = self.params.mix
        if level.alpha == 1:
            return everything(batch)
        return utilities(batch, mix * self.utility(batch.values, level, batch.kl_coef), own_share=1.0 - mix)
