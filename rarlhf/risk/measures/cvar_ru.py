"""`cvar_ru`: CVaR by the Rockafellar-Uryasev utility, all episodes.

CVaR is the maximum over eta of eta - mean(max(eta - v, 0)) / alpha. At the maximising eta, the alpha-quantile of v, the
policy's gradient is that of the utility u = eta - max(eta - v, 0) / alpha: it is unbiased, and every episode trains.
The constant eta makes u = v at alpha 1, so that the critic's targets do not jump as the schedule starts. For values
that hold -beta log pi there is a further term, - beta (1{v <= eta} / alpha - 1).
With the KL penalty outside (params `risk.of`: score) and a fixed eta, this is RLHF on a capped score.
Source: Rockafellar and Uryasev 2000; Tamar et al. 2015 (arXiv 1404.3862) for its gradient. The beta term is ours:
without it the gradient is off, since R contains log pi.
"""

from typing import ClassVar

import torch
from torch import Tensor

from rarlhf.config.params import RiskParams
from rarlhf.risk.measures.base import Batch, RiskMeasure, Treatment, everything, utilities
from rarlhf.risk.schedule import RiskLevel
from rarlhf.risk.tail import cvar

ETA = "eta"


def tail_utility(values: Tensor, eta: float, alpha: float, kl_coef: float, above: float = 0.0) -> Tensor:
    """f(v) - beta (f'(v) - 1), with f(v) = eta - max(eta - v, 0) / alpha + above max(v - eta, 0).

    Args:
        values: (B,) float v, returns or scores.
        eta: threshold, score units.
        alpha: level in (0, 1].
        kl_coef: beta if the values are returns, 0 if they are scores.
        above: slope above eta, [0, 1]; at 1, and alpha 1, u = v for every eta.
    Returns: (B,) float, score units.
    """
    utility = eta - (eta - values).clamp(min=0.0) / alpha + above * (values - eta).clamp(min=0.0)
    below = (values <= eta).to(values.dtype)
    return utility - kl_coef * (below / alpha + above * (1.0 - below) - 1.0)


class RockafellarUryasev(RiskMeasure):
    """Maximises CVaR at alpha'; eta is the batch's own quantile v_(B'), a running one, or fixed (params `risk.eta`).

    The batch's own eta is the largest value at alpha' = 1, so that u = v there. A fixed eta is not, and would cap the
    values at once: the utility keeps the slope 1 - progress above it, which falls from 1 to 0 along the schedule, while
    the slope below it, 1 / alpha', rises from 1. At progress 0 that is u = v, and at progress 1 the utility of CVaR.
    """

    reads: ClassVar[tuple[str, ...]] = ("of", "alpha", "warmup", "rho", "count_from", "eta", "eta_rate")

    def __init__(self, params: RiskParams) -> None:
        """Raises: ValueError if eta is still to come from a plan."""
        if params.eta == "plan":
            raise ValueError("risk.eta = 'plan': replace it by the number in the method's plan")
        super().__init__(params)

    def value(self, values: Tensor, level: RiskLevel) -> Tensor:
        """The fractional CVaR, which is the maximum over eta; with a fixed eta, the mean utility, which is below it."""
        if level.alpha == 1 or isinstance(self.params.eta, str):
            return cvar(values, level.alpha)
        return self.utility(values, level, kl_coef=0.0).mean()

    def treat(self, batch: Batch, level: RiskLevel) -> Treatment:
        """All episodes with their utility; the risk-neutral treatment while alpha' is 1."""
        if level.alpha == 1:
            return everything(batch)
        return utilities(batch, self.utility(batch.values, level, batch.kl_coef))

    def utility(self, values: Tensor, level: RiskLevel, kl_coef: float) -> Tensor:
        """(B,) utilities of `values` (B,) at a level below 1."""
        fixed = not isinstance(self.params.eta, str)
        above = 1.0 - float(level.progress) if fixed else 0.0
        return tail_utility(values, self.threshold(values, level), float(level.alpha), kl_coef, above)

    def threshold(self, values: Tensor, level: RiskLevel) -> float:
        """Eta for this batch; a running one then moves by `eta_rate` (1 - share of v <= eta / alpha').

        It starts at the first averse batch's quantile, and the step is the gradient ascent of the maximum over eta.
        """
        if not isinstance(self.params.eta, str):
            return self.params.eta
        quantile = float(torch.sort(values).values[level.kept(len(values)) - 1])
        if self.params.eta == "batch":
            return quantile
        eta = self.state.get(ETA, quantile)
        share = float((values <= eta).double().mean())
        self.state[ETA] = eta + self.params.eta_rate * (1.0 - share / float(level.alpha))
        return eta
