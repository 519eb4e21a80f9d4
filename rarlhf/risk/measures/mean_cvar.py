"""`mean_cvar`: (1 - lambda) mean + lambda CVaR, all episodes.

Each token keeps (1 - lambda) of its reward, and the utility is lambda / alpha' of the shortfall utility of `cvar_ru`.
Lambda is params `risk.mix`: 0 is plain RLHF, 1 is `cvar_ru`. Source: Rockafellar and Uryasev 2000; the
beta term as in `cvar_ru`.
"""

from typing import ClassVar

from torch import Tensor

from rarlhf.risk.measures.base import Batch, Treatment, everything, utilities
from rarlhf.risk.measures.cvar_ru import RockafellarUryasev, shortfall_utility
from rarlhf.risk.schedule import RiskLevel
from rarlhf.risk.tail import cvar


class MeanCVaR(RockafellarUryasev):
    """Maximises the mixture of mean and CVaR at alpha'."""

    reads: ClassVar[tuple[str, ...]] = ("alpha", "mix", "warmup", "rho", "count_from", "eta", "eta_rate")

    def value(self, returns: Tensor, level: RiskLevel) -> Tensor:
        """(1 - lambda) mean + lambda CVaR."""
        mix = self.params.mix
        return (1.0 - mix) * returns.mean() + mix * cvar(returns, level.alpha)

    def treat(self, batch: Batch, level: RiskLevel) -> Treatment:
        """All episodes with both shares of their reward; the risk-neutral treatment while alpha' is 1."""
        mix = self.params.mix
        if level.alpha == 1:
            return everything(batch)
        shortfall = shortfall_utility(batch.returns, self.threshold(batch.returns, level), batch.kl_coef)
        return utilities(batch, mix / float(level.alpha) * shortfall, own_share=1.0 - mix)
