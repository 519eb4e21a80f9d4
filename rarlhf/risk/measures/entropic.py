"""`entropic`: -T log mean exp(-R / T), all episodes weighted by how bad they are.

T (params `risk.temperature`, score units) sets how averse it is: the value tends to the mean as T grows and to the
minimum as T falls to 0. Close to mean - variance / (2 T) for large T. The schedule raises 1/T from 0.
Source: Foellmer and Schied 2002; Howard and Matheson 1972 for exponential utility.
"""

from fractions import Fraction
from math import log
from typing import ClassVar

import torch
from torch import Tensor

from rarlhf.risk.measures.base import Batch, RiskMeasure, Treatment, everything, utilities
from rarlhf.risk.schedule import RiskLevel


def log_weights(returns: Tensor, temperature: float) -> Tensor:
    """Log of w = B softmax(-R / T), whose mean is 1.

    Args:
        returns: (B,) float R.
        temperature: T above 0, score units.
    Returns: (B,) float64: a large T leaves small differences of large numbers.
    """
    return torch.log_softmax(-returns.double() / temperature, dim=0) + log(len(returns))


def entropic_value(returns: Tensor, temperature: float) -> Tensor:
    """-T log mean exp(-R / T): () float64, between the minimum and the mean of `returns` (B,)."""
    return -temperature * (torch.logsumexp(-returns.double() / temperature, dim=0) - log(len(returns)))


def entropic_utility(returns: Tensor, temperature: float, kl_coef: float) -> Tensor:
    """-T (w - 1) - beta w, by expm1 so that a large T keeps its digits; (B,) float.

    The second term only scales the first up to a constant, by 1 + beta / T, which whitening removes.
    """
    log_w = log_weights(returns, temperature)
    return (-temperature * torch.expm1(log_w) - kl_coef * log_w.exp()).to(returns.dtype)


class Entropic(RiskMeasure):
    """Maximises the entropic value at T / progress; `risk.alpha` is not read."""

    reads: ClassVar[tuple[str, ...]] = ("temperature", "warmup", "rho", "count_from")

    def value(self, returns: Tensor, level: RiskLevel) -> Tensor:
        """-T log mean exp(-R / T); the mean at progress 0."""
        return entropic_value(returns, self.temperature(level.progress)) if level.progress > 0 else returns.mean()

    def treat(self, batch: Batch, level: RiskLevel) -> Treatment:
        """All episodes with their exponential utility; the risk-neutral treatment at progress 0."""
        if level.progress == 0:
            return everything(batch)
        return utilities(batch, entropic_utility(batch.returns, self.temperature(level.progress), batch.kl_coef))

    def temperature(self, progress: Fraction) -> float:
        """T / progress, for progress above 0."""
        return self.params.temperature / float(progress)
