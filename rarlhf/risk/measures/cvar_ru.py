"""`cvar_ru`: CVaR by the Rockafellar-Uryasev utility, all episodes.

CVaR is the maximum over eta of eta - mean(max(eta - R, 0)) / alpha. At the maximising eta, the alpha-quantile of R, the
policy's gradient is that of the utility u = -max(eta - R, 0) - beta 1{R <= eta}, up to a factor 1/alpha that whitening
removes: it is unbiased, and every episode trains; those above eta have u = 0, which is above the batch's mean.
Source: Rockafellar and Uryasev 2000; Tamar et al. 2015 (arXiv 1404.3862) for its gradient. The beta term is ours:
without it the gradient is off, since R contains log pi.
"""

from typing import ClassVar

import torch
from torch import Tensor

from rarlhf.risk.measures.base import Batch, RiskMeasure, Treatment, everything, utilities
from rarlhf.risk.schedule import RiskLevel
from rarlhf.risk.tail import cvar

ETA = "eta"


def shortfall_utility(returns: Tensor, eta: float, kl_coef: float) -> Tensor:
    """-max(eta - R, 0) - beta 1{R <= eta}.

    Args:
        returns: (B,) float R, with the KL penalty in it.
        eta: threshold, score units.
        kl_coef: beta.
    Returns: (B,) float, at most 0.
    """
    return -(eta - returns).clamp(min=0.0) - kl_coef * (returns <= eta).to(returns.dtype)


class RockafellarUryasev(RiskMeasure):
    """Maximises CVaR at alpha', with eta the batch's own quantile R_(B') or a running one (params `risk.eta`)."""

    reads: ClassVar[tuple[str, ...]] = ("alpha", "warmup", "rho", "count_from", "eta", "eta_rate")

    def value(self, returns: Tensor, level: RiskLevel) -> Tensor:
        """The fractional CVaR, which is the maximum over eta."""
        return cvar(returns, level.alpha)

    def treat(self, batch: Batch, level: RiskLevel) -> Treatment:
        """All episodes with their shortfall below eta; the risk-neutral treatment while alpha' is 1."""
        if level.alpha == 1:
            return everything(batch)
        return utilities(batch, shortfall_utility(batch.returns, self.threshold(batch.returns, level), batch.kl_coef))

    def threshold(self, returns: Tensor, level: RiskLevel) -> float:
        """Eta for this batch; a running one then moves by `eta_rate` (1 - share of R <= eta / alpha').

        It starts at the first averse batch's quantile, and the step is the gradient ascent of the maximum over eta.
        """
        quantile = float(torch.sort(returns).values[level.kept(len(returns)) - 1])
        if self.params.eta == "batch":
            return quantile
        eta = self.state.get(ETA, quantile)
        share = float((returns <= eta).double().mean())
        self.state[ETA] = eta + self.params.eta_rate * (1.0 - share / float(level.alpha))
        return eta
