"""Groups of similar prompts in the prompt tail, and what each method gained in each (after the paper's appendix B).

Letters for shapes: P test prompts, k samples per prompt, N prompts of the tail, H width of an embedding.
"""

from typing import TypedDict

import numpy as np
from scipy.cluster.vq import ClusterError, kmeans2

from rarlhf.config.methods import is_trained
from rarlhf.evaluation.generations import BoolArray, FloatArray, IntArray, Tables
from rarlhf.evaluation.statistics import Spread, over_seeds

STARTS = 10  # of k-means, the best of which is kept
NEAREST = 3  # prompts that stand for a cluster
SFT = "sft"


class Cluster(TypedDict):
    """Similar prompts of the tail."""

    prompts: int
    prompt_score: float  # mean of the prompts' own scores
    nearest: list[int]  # ids of the prompts nearest to the centre
    gains: dict[str, Spread]  # trained method -> mean reward less SFT's on these prompts; none without SFT


class CriticalPrompts(TypedDict):
    """The prompt tail in clusters, the lowest prompt score first."""

    clusters: list[Cluster]
    places: list[list[float]]  # of each tail prompt by ascending id: two principal components and its cluster's index
    explained: float  # share of the variance in the two components


def critical_prompts(
    tables: Tables, tail: BoolArray, embeddings: FloatArray, count: int, seed: int
) -> CriticalPrompts | None:
    """The clusters of the prompt tail.

    Embeddings are divided by their length, so that k-means compares their directions.

    Args:
        tables: generations of every method and seed.
        tail: (P,) bool, the prompt tail.
        embeddings: (P, H) of the prompts.
        count: clusters; fewer where the tail has fewer different prompts.
        seed: of k-means' starts.

    Returns: None where there are fewer than two different prompts, or `count` is below 2.
    """
    table = next(iter(next(iter(tables.values())).values()))
    rows = np.flatnonzero(tail)
    lengths = np.linalg.norm(embeddings[rows], axis=1, keepdims=True)
    vectors = embeddings[rows] / np.where(lengths > 0, lengths, 1.0)
    groups = cluster(vectors, count, seed)
    if groups is None:
        return None
    own = table.prompt_scores[rows]
    order = sorted(range(int(groups.max()) + 1), key=lambda group: float(own[groups == group].mean()))
    clusters = []
    for group in order:
        inside = groups == group
        distance = np.linalg.norm(vectors[inside] - vectors[inside].mean(axis=0), axis=1)
        nearest = table.prompt_ids[rows[inside]][np.argsort(distance, kind="stable")[:NEAREST]]
        clusters.append(
            Cluster(
                prompts=int(inside.sum()),
                prompt_score=float(own[inside].mean()),
                nearest=[int(i) for i in nearest],
                gains=_gains(tables, rows[inside]),
            )
        )
    number = {group: index for index, group in enumerate(order)}
    places, explained = principal_plane(vectors)
    located = [[*map(float, place), float(number[int(group)])] for place, group in zip(places, groups, strict=True)]
    return CriticalPrompts(clusters=clusters, places=located, explained=explained)


def cluster(vectors: FloatArray, count: int, seed: int) -> IntArray | None:
    """Groups of similar rows by k-means, the best of `STARTS` starts by k-means++.

    Args:
        vectors: (N, H).
        count: groups at most; there are no more than different rows.
        seed: of the starts.

    Returns: (N,) index of each row's group, every group in use; None if there are fewer than two.
    """
    different = len(np.unique(vectors, axis=0))
    draws = np.random.default_rng(seed)
    for groups in range(min(count, different), 1, -1):
        found = [result for _ in range(STARTS) if (result := _k_means(vectors, groups, draws)) is not None]
        if found:
            return min(found, key=lambda result: result[0])[1]
    return None


def _k_means(vectors: FloatArray, count: int, draws: np.random.Generator) -> tuple[float, IntArray] | None:
    """The sum of squared distances to the centres, and each row's group; None where a group ended empty."""
    try:
        centres, groups = kmeans2(vectors, count, minit="++", iter=100, missing="raise", rng=draws)
    except ClusterError:
        return None
    if len(np.unique(groups)) < count:
        return None
    return float(((vectors - centres[groups]) ** 2).sum()), groups.astype(np.int64)


def principal_plane(vectors: FloatArray) -> tuple[FloatArray, float]:
    """The rows in the plane of their two largest principal components, and the share of the variance in it.

    Args:
        vectors: (N, H).

    Returns: (N, 2) places, each axis so turned that its largest value is positive, and a share in [0, 1].
    """
    centred = vectors - vectors.mean(axis=0)
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    places = np.zeros((len(vectors), 2))
    width = min(2, len(sizes))
    places[:, :width] = left[:, :width] * sizes[:width]
    largest = np.take_along_axis(places, np.abs(places).argmax(axis=0)[None], axis=0)
    total = float((sizes**2).sum())
    return places * np.where(largest < 0, -1.0, 1.0), float((sizes[:2] ** 2).sum()) / total if total else 1.0


def _gains(tables: Tables, rows: IntArray) -> dict[str, Spread]:
    """Mean reward of each trained method less SFT's on some prompts, by seed."""
    if SFT not in tables:
        return {}
    return {
        method: over_seeds(
            [float(table.scores[rows].mean() - tables[SFT][seed].scores[rows].mean()) for seed, table in by.items()]
        )
        for method, by in tables.items()
        if is_trained(method)
    }
