"""Best of n from one pool of the SFT model's samples, for every n at once and with no further draws.

Of N samples to a prompt, the best of n drawn without replacement is the one of rank r (1 the lowest score) with
probability C(r - 1, n - 1) / C(N, n). That makes the mean an unbiased estimate of that of n fresh draws. Equal scores
share their probability, as a random order among them would have it.

So the best of n has, given its score, the SFT model's own distribution, and its KL is that of the scores alone. With
the samples' shares in place of probabilities, a score with the shares F below it and c at it is the best of n with the
probability W = (F + c)^n - F^n, and KL(x) is the sum of W log(W / c) over the scores. That is never above the bound
log n - (n - 1) / n (Beirami et al. 2024, arXiv 2401.01879), and meets it where all scores differ and N is large.

Letters for shapes: P prompts, N samples to each.
"""

from math import comb
from typing import TypedDict

import numpy as np

from rarlhf.data.acceptance import best_of_n_nats
from rarlhf.evaluation.generations import BoolArray, FloatArray
from rarlhf.risk.plan import Answers, weighted_cvar


class BestOfNCurve(TypedDict):
    """What the best of n reaches; the lists are of equal length, rising in n."""

    n: list[int]
    kl: list[float]  # nats, estimated, mean over prompts
    kl_bound: list[float]  # nats, log n - (n - 1) / n
    metrics: dict[str, list[float]]  # reward_mean, reward_cvar_10, and reward_prompt_tail where there is a tail


def best_of_n_curve(scores: FloatArray, tail: BoolArray | None, alpha: float) -> BestOfNCurve:
    """Mean, CVaR and prompt tail of the best of n, for n = 1, 2, 4, ... up to half the samples.

    With more, the estimate would stand on the few highest samples of each prompt.

    Args:
        scores: (P, N) of the SFT model's samples, score units.
        tail: (P,) prompts of the tail; None for no tail.
        alpha: level of the CVaR.
    """
    count = scores.shape[1]
    numbers = [2**power for power in range(count.bit_length()) if 2**power <= max(1, count // 2)]
    answers = Answers(scores.astype(np.float64))
    curve = BestOfNCurve(n=numbers, kl=[], kl_bound=[best_of_n_nats(n) for n in numbers], metrics={})
    for n in numbers:
        weights = best_of_n_weights(answers.scores, n)
        by_prompt = (weights * answers.scores).sum(axis=1)
        values = {"reward_mean": float(by_prompt.mean()), "reward_cvar_10": weighted_cvar(answers, weights, alpha)}
        if tail is not None:
            values["reward_prompt_tail"] = float(by_prompt[tail].mean())
        curve["kl"].append(float(np.mean([_kl(row, n) for row in answers.scores])))
        for metric, value in values.items():
            curve["metrics"].setdefault(metric, []).append(value)
    return curve


def best_of_n_weights(scores: FloatArray, n: int) -> FloatArray:
    """(P, N) probability that each sample is the best of n, equal for samples of a prompt that score alike.

    Args:
        scores: (P, N).
        n: 1 to N.
    Raises: ValueError for another n.
    """
    count = scores.shape[1]
    if not 1 <= n <= count:
        raise ValueError(f"n must be 1 to {count}, the samples to a prompt, got {n}")
    by_rank = np.array([comb(rank, n - 1) / comb(count, n) for rank in range(count)])
    weights = np.empty(scores.shape)
    for row, of_prompt in zip(scores, weights, strict=True):
        _, level, sizes = np.unique(row, return_inverse=True, return_counts=True)
        ends = np.cumsum(sizes)
        shares = [by_rank[end - size : end].mean() for end, size in zip(ends, sizes, strict=True)]
        of_prompt[:] = np.array(shares)[level]
    return weights


def _kl(scores: FloatArray, n: int) -> float:
    """KL of the best of n of a prompt's N samples (N,), drawn with replacement, to a sample; nats."""
    _, sizes = np.unique(scores, return_counts=True)
    shares = sizes / len(scores)
    best = np.diff(np.cumsum(shares) ** n, prepend=0.0)
    return float(best @ np.log(np.maximum(best, np.finfo(float).tiny) / shares))
