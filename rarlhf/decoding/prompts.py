"""Queries as a batch of tokens. Letters for shapes: B prompts, Q query tokens."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rarlhf.models.episodes import real_tokens


class Prompts(NamedTuple):
    """Queries, padded on the left to one width."""

    tokens: Tensor  # (B, Q) int64
    mask: Tensor  # (B, Q) bool, True = real token

    def rows(self, index: Tensor | slice) -> "Prompts":
        """The prompts at `index`, in that order."""
        return Prompts(self.tokens[index], self.mask[index])

    def behind(self, prefix: Sequence[int]) -> "Prompts":
        """The prompts, each with these tokens before its first."""
        if not prefix:
            return self
        rows = zip(self.tokens.tolist(), self.mask.tolist(), strict=True)
        return left_pad([[*prefix, *real_tokens(*row)] for row in rows], prefix[0], self.tokens.device)


def left_pad(rows: Sequence[list[int]], pad_id: int, device: torch.device) -> Prompts:
    """Stacks lists of token ids of unequal lengths."""
    width = max(len(row) for row in rows)
    tokens = torch.tensor([[pad_id] * (width - len(row)) + row for row in rows], device=device)
    mask = torch.tensor([[False] * (width - len(row)) + [True] * len(row) for row in rows], device=device)
    return Prompts(tokens, mask)
