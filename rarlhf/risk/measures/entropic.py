"""`entropic`: -T log mean exp(-v / T), all episodes weighted by how bad they are.

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


def log_weights(values: Tensor, temperature: float) -> Tensor:
    """Log of w = B softmax(-v / T), whose mean is 1.

    Args:
        values: (B,) float v, returns or scores.
        temperature: T above 0, score units.
    Returns: (B,) float64: a large T leaves small differences of large numbers.
    """
    return torch.log_softmax(-values.double() / temperature, dim=0) + log(len(values))


def entropic_value(values: Tensor, temperature: float) -> Tensor:
    """-T log mean exp(-v / T): () float64, between the minimum and the mean of `values` (B,)."""
    return -temperature * (torch.logsumexp(-values.double() / temperature, dim=0) - log(len(values)))


def entropic_utility(values: Tensor, temperature: float, kl_coef: float) -> Tensor:
    """Utility mean(v) - (T + beta) (w - 1), by expm1 so that a large T keeps its digits; (B,) float.

    It tends to v as T grows. Beta is 0 where the values are scores.
    """
    excess = torch.expm1(log_weights(values, temperature))
    return (values.double().mean() - (temperature + kl_coef) * excess).to(values.dtype)


class Entropic(RiskMeasure):
    """Maximises the entropic value at T / progress; `risk.alpha` is not read."""

    reads: ClassVar[tuple[str, ...]] = ("of", "temperature", "warmup", "rho", "count_from")

    def value(self, values: Tensor, level: RiskLevel) -> Tensor:
        """-T log mean exp(-v / T); the mean at progress 0."""
        return entropic_value(values, self.temperature(level.progress)) if level.progress > 0 else values.mean()

    def treat(self, batch: Batch, level: RiskLevel) -> Treatment:
        """All episodes with their exponential utility; the risk-neutral treatment at progress 0."""
        if level.progress == 0:
            return everything(batch)
        return utilities(batch, entropic_utility(batch.values, self.temperature(level.progress), batch.kl_coef))

    def temperature(self, progress: Fraction) -> float:
        """T / progress, for progress above 0."""
        return self.params.temperature / float(progress)
