"""`mean_cvar`: (1 - lambda) mean + lambda CVaR, all episodes.

Each token keeps (1 - lambda) of its reward, and lambda / alpha' of the shortfall utility of `cvar_ru` stands at the
last real token. lambda is params `risk.mix`: 0 is plain RLHF, 1 is `cvar_ru`. Source: Rockafellar and Uryasev 2000; the
beta term as in `cvar_ru`.
"""

from fractions import Fraction
from typing import ClassVar

from torch import Tensor

from rarlhf.risk.measures.base import Batch, Treatment, everything, terminal_rewards
from rarlhf.risk.measures.cvar_ru import RockafellarUryasev, shortfall_utility
from rarlhf.risk.tail import cvar


class MeanCVaR(RockafellarUryasev):
    """Maximises the mixture of mean and CVaR at alpha'."""

    reads: ClassVar[tuple[str, ...]] = ("alpha", "mix", "warmup", "rho", "count_from", "eta_rate")

    def value(self, returns: Tensor, progress: Fraction) -> Tensor:
        """(1 - lambda) mean + lambda CVaR."""
        mix = self.params.mix
        return (1.0 - mix) * returns.mean() + mix * cvar(returns, self.level(progress))

    def treat(self, batch: Batch, progress: Fraction) -> Treatment:
        """All episodes with both shares of their reward; the risk-neutral treatment while alpha' is 1."""
        level, mix = self.level(progress), self.params.mix
        if level == 1:
            return everything(batch)
        shortfall = shortfall_utility(batch.returns, self.threshold(batch.returns, level), batch.kl_coef)
        tail = terminal_rewards(mix / float(level) * shortfall, batch.response_mask)
        return everything(batch._replace(rewards=(1.0 - mix) * batch.rewards + tail))
