"""`evar`: entropic value at risk, the largest lower bound of CVaR that exponentials give, all episodes.

sup over T > 0 of -T log mean exp(-v / T) + T log alpha. At the maximising T* the weights w = B softmax(-v / T*) have
the relative entropy mean(w log w) = log(1 / alpha): the worst reweighting within that distance of the batch. If
the share of episodes at the minimum is alpha or more, T* is 0, the value is the minimum, and the weights are uniform on
the minima.
Source: Ahmadi-Javid 2012; named as future work in the paper's public review answers.
"""

from fractions import Fraction
from math import log
from typing import ClassVar

import torch
from torch import Tensor

from rarlhf.risk.measures.base import Batch, RiskMeasure, Treatment, everything, utilities
from rarlhf.risk.measures.entropic import entropic_utility, entropic_value, log_weights
from rarlhf.risk.schedule import RiskLevel


def evar_temperature(values: Tensor, alpha: Fraction) -> float:
    """T* at which the weights' relative entropy is log(1 / alpha), by a root of log T in float64.

    Args:
        values: (B,) float v, returns or scores.
        alpha: level in (0, 1).
    Returns: T* in score units; 0.0 where the share of minima is at least alpha.
    """
    excess = (values.double() - values.double().min()) / _spread(values)
    if float((excess == 0).double().mean()) >= alpha:
        return 0.0

    def above(exponent: float) -> float:
        """By how much the relative entropy at T = 10^exponent spreads is above its bound; it falls as T rises."""
        log_w = log_weights(excess, 10.0**exponent)
        return float((log_w.exp() * log_w).mean()) - log(1 / alpha)

    from scipy.optimize import brentq  # a third of a second to import

    return float(10.0 ** brentq(above, -30.0, 30.0, xtol=1e-15) * _spread(values))


def evar(values: Tensor, alpha: Fraction) -> Tensor:
    """Entropic value at risk of `values` (B,) at alpha in (0, 1]: () float, never above CVaR; the mean at 1."""
    if alpha == 1:
        return values.mean()
    temperature = evar_temperature(values, alpha)
    if temperature == 0:
        return values.min()
    return entropic_value(values, temperature) + temperature * log(alpha)


def _spread(values: Tensor) -> Tensor:
    """Range of the values in float64, 1 if they are all equal."""
    spread = values.double().max() - values.double().min()
    return torch.where(spread > 0, spread, 1.0)


class EntropicValueAtRisk(RiskMeasure):
    """Maximises EVaR at alpha'; T* is found for every batch."""

    reads: ClassVar[tuple[str, ...]] = ("of", "alpha", "warmup", "rho", "count_from")

    def value(self, values: Tensor, level: RiskLevel) -> Tensor:
        """EVaR of the batch at alpha'."""
        return evar(values, level.alpha)

    def treat(self, batch: Batch, level: RiskLevel) -> Treatment:
        """All episodes with the entropic utility at T*; the risk-neutral treatment while alpha' is 1."""
        if level.alpha == 1:
            return everything(batch)
        temperature = evar_temperature(batch.values, level.alpha)
        if temperature == 0:
            return utilities(batch, _minimum_utility(batch.values, batch.kl_coef))
        return utilities(batch, entropic_utility(batch.values, temperature, batch.kl_coef))


def _minimum_utility(values: Tensor, kl_coef: float) -> Tensor:
    """Utility mean(v) - beta (w - 1), w uniform on the minima: what the entropic utility tends to as T falls to 0.

    It is the same for all scores: where enough episodes are at the minimum, a small step does not move it.
    """
    minima = (values == values.min()).to(values.dtype)
    return values.mean() - kl_coef * (minima / minima.mean() - 1.0)
