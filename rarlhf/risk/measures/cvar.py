"""`cvar`: the paper's hard selection of the worst episodes.

The B' = ceil(alpha' B) episodes with the lowest ranking value train. The others are left out of the PPO epochs, so this
is the only measure that saves compute. Its gradient is biased once advantages are centred over the kept episodes
(docs/algorithm.md).
Source: Chaudhary et al. 2024 (arXiv 2501.06911), Algorithm 1; the soft schedule after Greenberg et al. 2022 (CeSoR).
"""

from bisect import bisect_left
from collections.abc import Sequence
from fractions import Fraction
from itertools import accumulate
from typing import ClassVar

import torch
from torch import Tensor

from rarlhf.risk.measures.base import Batch, RiskMeasure, Treatment
from rarlhf.risk.schedule import RiskLevel
from rarlhf.risk.tail import worst_episodes


class HardSelection(RiskMeasure):
    """Maximises the mean of the B' lowest returns, whole episodes."""

    reads: ClassVar[tuple[str, ...]] = ("alpha", "warmup", "rho", "count_from", "ranking", "dropped", "hard_share")

    def value(self, values: Tensor, level: RiskLevel) -> Tensor:
        """Mean of the B' lowest R: the ceil-mean, at or above the fractional CVaR that reports use."""
        return values[worst_episodes(values, level.kept(len(values)))].mean()

    def treat(self, batch: Batch, level: RiskLevel) -> Treatment:
        """Keeps the B' worst episodes, ties by lower index; with weighted prompts, the share alpha' of all weight."""
        kept = level.kept(len(batch.ranking))
        if batch.weights is not None:
            kept = weighted_count(batch.ranking, batch.weights, level.alpha)
        return Treatment(worst_episodes(batch.ranking, kept))


def weighted_count(ranking: Tensor, weights: Sequence[Fraction], alpha: Fraction) -> int:
    """How many of the lowest `ranking` (B,) hold the share `alpha` of the B `weights`; ceil(alpha B) if all are equal.

    Counted in exact rationals: in floats 7 of 25 episodes hold a share that is short of 0.28.
    """
    order = torch.sort(ranking, stable=True).indices.tolist()
    held = list(accumulate(weights[index] for index in order))
    return bisect_left(held, alpha * held[-1]) + 1
