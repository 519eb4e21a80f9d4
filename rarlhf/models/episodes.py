"""Episodes (queries with their responses), what is measured of them, and how both are cut and joined.

Letters for shapes: B episodes, Q query tokens (padded on the left), T response tokens (padded on the right).
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Episodes(NamedTuple):
    """Queries with their responses."""

    queries: Tensor  # (B, Q) int64, padded on the left
    query_mask: Tensor  # (B, Q) bool, True = real token
    responses: Tensor  # (B, T) int64, padded on the right
    response_mask: Tensor  # (B, T) bool, True = real token, including the end of text

    def rows(self, index: Tensor) -> "Episodes":
        """The episodes at `index` (int64 or bool), in that order."""
        return Episodes(*(field[index] for field in self))


class Measured(NamedTuple):
    """What is recorded of a policy's own responses, without gradient; padding is not zeroed."""

    logprobs: Tensor  # (B, T) float32, log pi(a_t) in nats
    values: Tensor  # (B, T) float32, critic in score units
    entropy: Tensor  # (B, T) float32, nats


def chunks(rows: Tensor, size: int) -> tuple[Tensor, ...]:
    """`rows` (N,) in pieces of `size`, of which the last may be shorter; none if N is 0."""
    return rows.split(size) if len(rows) else ()


def real_tokens(tokens: list[int], mask: list[bool]) -> list[int]:
    """The tokens whose mask is True."""
    return [token for token, is_real in zip(tokens, mask, strict=True) if is_real]


def stacked(parts: list[Episodes], pad_id: int) -> Episodes:
    """Joins micro-batches whose longest responses differ."""
    return Episodes(
        torch.cat([part.queries for part in parts]),
        torch.cat([part.query_mask for part in parts]),
        widened([part.responses for part in parts], pad_id),
        widened([part.response_mask for part in parts], False),
    )


def joined(parts: list[Measured]) -> Measured:
    """Joins what was measured of micro-batches whose longest responses differ; padding is 0."""
    return Measured(*(widened(list(fields), 0.0) for fields in zip(*parts, strict=True)))


def widened(parts: list[Tensor], fill: float) -> Tensor:
    """Joins tensors (B_i, T_i, ...) along B, each padded on the right to the widest T."""
    width = max(part.shape[1] for part in parts)
    return torch.cat([torch.nn.functional.pad(part, (0, width - part.shape[1]), value=fill) for part in parts])
