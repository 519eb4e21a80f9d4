"""Drawing hard prompts more often: q(x) = (1 - lambda) p(x) + lambda p(x | V(x) <= v_alpha).

This gives new samples of the tail, instead of more weight on the ones there are. V is the critic's value of the bare
prompt, and v_alpha its alpha-quantile. After Greenberg et al. 2022 (CeSoR, arXiv 2205.05138), whose weights p / q
measure how much of the tail a batch holds, so that the level of risk stays alpha. Here the kept episodes have equal
weight in the update.
"""

from collections.abc import Callable, Sequence
from fractions import Fraction
from math import ceil

import torch
from torch import Tensor

from rarlhf.data.batches import query_batch

ValueOf = Callable[[Sequence[list[int]]], Tensor]  # N queries to (N,) values of the critic


class HardPrompts:
    """Draws a share lambda (params `risk.hard_share`) of each batch from the prompts of lowest value."""

    def __init__(self, queries: Sequence[list[int]], share: float, seed: int) -> None:
        self.queries = queries
        self.share = Fraction(str(share))
        self.seed = seed

    def mix(
        self, batch: list[list[int]], index: int, level: Fraction, value_of: ValueOf
    ) -> tuple[list[list[int]], float]:
        """Replaces the last prompts of a batch by hard ones.

        So many candidates are drawn from p that the share alpha' of them is the number of hard prompts.

        Args:
            batch: B queries drawn from p.
            index: of the iteration; names the random stream of the candidates.
            level: alpha' in (0, 1); at 1 every prompt is below the quantile, and nothing is replaced.
            value_of: the critic.
        Returns: B queries, and v_alpha, the value at or below which a prompt is hard (-inf where none is). It lies
            halfway to the lowest candidate that is not taken, because the prompts' values are computed again with
            their responses, and rounding must not decide the weight of the last one that is taken.
        """
        count = int(len(batch) * self.share) if level < 1 else 0
        size = min(ceil(count / level), len(self.queries))
        if count == 0:
            return batch, -torch.inf
        candidates = query_batch(self.queries, index, size, self.seed, stream="candidates")
        values = value_of(candidates)
        order = torch.sort(values, stable=True).indices
        hard = [candidates[int(i)] for i in order[:count].sort().values]
        return [*batch[: len(batch) - count], *hard], float(values[order[count - 1 : count + 1]].mean())

    def weights(self, values: Tensor, threshold: float, level: Fraction) -> tuple[Fraction, ...]:
        """B exact numbers, p(x) / q(x) of prompts with the critic's `values` (B,): small at or below `threshold`."""
        ordinary = 1 - self.share
        hard = ordinary + self.share / level
        return tuple(1 / hard if is_hard else 1 / ordinary for is_hard in (values <= threshold).tolist())
