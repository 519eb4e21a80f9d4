"""Batches of queries, drawn in passes over all of them."""

from collections.abc import Sequence

import torch

from rarlhf.system.streams import generator


def query_batch(
    queries: Sequence[list[int]], index: int, batch_size: int, seed: int, stream: str = "queries"
) -> list[list[int]]:
    """The `index`-th batch (from 0) of passes over shuffled queries, without each pass's incomplete last batch.

    Args:
        queries: at least `batch_size` lists of token ids.
        index: of the batch.
        batch_size: queries in it.
        seed: the run's.
        stream: name of the random stream; each name gives another order.
    """
    per_pass = len(queries) // batch_size
    order = torch.randperm(len(queries), generator=generator(stream, seed, index // per_pass)).tolist()
    start = index % per_pass * batch_size
    return [queries[i] for i in order[start : start + batch_size]]
