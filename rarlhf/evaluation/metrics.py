"""Measures of one model's generations, as pure functions of arrays.

Rewards are better when higher, so every tail here is the lower one. Letters for shapes: P test prompts, k samples per
prompt. Definitions with sign, unit and source: docs/evaluation.md.
"""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from math import ceil, floor

import numpy as np

from rarlhf.config.errors import UserError
from rarlhf.evaluation.generations import BoolArray, FloatArray, Generations

# The tails' levels are part of the metrics' names, which other programs read: another level is another metric.
TAIL_LEVELS: Mapping[str, float] = {"05": 0.05, "10": 0.10, "20": 0.20}
DECILES = 10
# Part of what reward_prompt_cvar_10 is: with fewer, the worst 10 % of a prompt's samples is less than one sample.
PROMPT_CVAR_MIN_SAMPLES = 10


def tail_size(share: float, count: int) -> Fraction:
    """`share * count` without float error: 0.28 of 25 is 7, not 7.000000000000001.

    Raises: ValueError if `share` is outside (0, 1] or `count` is 0.
    """
    if not 0 < share <= 1 or count < 1:
        raise ValueError(f"a tail needs a share in (0, 1] and at least one value, got {share} of {count}")
    return Fraction(str(float(share))) * count


def value_at_risk(values: FloatArray, risk_alpha: float) -> FloatArray:
    """Lower `risk_alpha` quantile along the last axis: the ceil(alpha n)-th lowest value, inf{x: F(x) >= alpha}.

    Args:
        values: (..., n) float, any order.
        risk_alpha: level in (0, 1]; 1 gives the maximum.

    Returns: (...) float, one of the values, never interpolated.

    Raises: ValueError if `risk_alpha` is outside (0, 1] or n is 0.
    """
    position = ceil(tail_size(risk_alpha, values.shape[-1])) - 1
    return np.asarray(np.sort(values, axis=-1)[..., position], dtype=np.float64)


def cvar(values: FloatArray, risk_alpha: float) -> FloatArray:
    """Mean of the worst `risk_alpha` share along the last axis, the value at its edge counted in part.

    [sum of the floor(alpha n) lowest + (alpha n - floor(alpha n)) x next] / (alpha n), which is the maximum over eta of
    eta - mean((eta - R)+) / alpha (Rockafellar and Uryasev 2000, lower tail). The trainer keeps whole episodes instead.

    Args:
        values: (..., n) float, any order.
        risk_alpha: level in (0, 1]; 1 gives the mean, below 1/n the minimum.

    Returns: (...) float, same units, never above the mean nor above `value_at_risk`.

    Raises: ValueError if `risk_alpha` is outside (0, 1] or n is 0.
    """
    # `rarlhf.risk.tail.cvar` is the same for tensors of any device, within training. Numpy and torch add in another
    # order, so that one of the two could not replace the other without a change to the last digits of results.
    size = tail_size(risk_alpha, values.shape[-1])
    whole = floor(size)
    ordered = np.sort(values, axis=-1)
    total = ordered[..., :whole].sum(axis=-1)
    if size > whole:
        total = total + float(size - whole) * ordered[..., whole]
    return np.asarray(total / float(size), dtype=np.float64)


def cvar_curve(scores: FloatArray, alphas: Sequence[float]) -> FloatArray:
    """CVaR of the mixture of prompts and samples at several levels.

    Args:
        scores: (P, k) float.
        alphas: levels in (0, 1].

    Returns: (len(alphas),) float, never falling as the level rises.
    """
    ordered = np.sort(scores, axis=None)  # sorted once: sorting it again inside `cvar` is cheap
    return np.array([cvar(ordered, alpha) for alpha in alphas], dtype=np.float64)


def prompt_tail(prompt_scores: FloatArray, quantile: float | None, threshold: float | None) -> BoolArray:
    """Which test prompts are the tail, decided by the scores of the prompts alone, before any model answers.

    Args:
        prompt_scores: (P,) float, score of each prompt alone, prompts by ascending id.
        quantile: the ceil(quantile P) lowest-scored prompts, ties by lower id; or None.
        threshold: instead, every prompt with a score at or below it.

    Returns: (P,) bool, True = in the tail.

    Raises: UserError if no prompt is at or below the threshold, or neither rule is given.
    """
    if threshold is not None:
        tail = np.asarray(prompt_scores <= threshold)
        if not tail.any():
            raise UserError(
                f"evaluate.tail_threshold = {threshold}: no test prompt scores so low (lowest: "
                f"{prompt_scores.min():.3f}); raise it or set evaluate.tail_quantile instead"
            )
        return tail
    if quantile is None:
        raise UserError("evaluate: set tail_quantile or tail_threshold; both are null")
    tail = np.zeros(len(prompt_scores), dtype=np.bool_)
    tail[np.argsort(prompt_scores, kind="stable")[: ceil(tail_size(quantile, len(prompt_scores)))]] = True
    return tail


def quantile_curve(prompt_scores: FloatArray, scores: FloatArray, percents: Sequence[int]) -> FloatArray:
    """Mean reward over the first x % of the prompts in ascending order of their own score (the paper's figure).

    Args:
        prompt_scores: (P,) float.
        scores: (P, k) float; a prompt's reward is the mean of its samples.
        percents: whole percents x in 1..100; x % is the first ceil(x P / 100) prompts.

    Returns: (len(percents),) float; at 100 the mean reward. It depends on the prompt, so it is no CVaR of outcomes.

    Source: new_quantile_plot_*.py of SapanaChaudhary/RA-RLHF.
    """
    rewards = scores.mean(axis=1)[np.argsort(prompt_scores, kind="stable")]
    cumulative = np.cumsum(rewards) / np.arange(1, len(rewards) + 1)
    counts = [-(-percent * len(rewards) // 100) for percent in percents]
    return np.asarray(cumulative[np.array(counts) - 1], dtype=np.float64)


def kl_by_decile(table: Generations) -> list[float]:
    """Mean KL by decile of the prompts' own scores, the lowest first.

    Args:
        table: P prompts; with fewer than 10, each is a group of its own. Ties in the score go by lower id.

    Returns: 10 numbers in nats, or P of them.
    """
    order = np.argsort(table.prompt_scores, kind="stable")
    groups = np.array_split(order, min(DECILES, len(order)))
    return [float(table.kl[group].mean()) for group in groups]


def distinct_ngrams(continuations: Sequence[Sequence[str]], n: int) -> float:
    """dist-n: unique n-grams of a prompt's continuations over their number of words, mean over prompts.

    Args:
        continuations: P times k texts, words split at white space; n-grams do not cross continuations.
        n: length of the n-grams, >= 1.

    Returns: number in [0, 1]; it falls as k rises, so only equal k compare. A prompt without a single word counts as 0.

    Source: scripts/evaluation/evaluate_generations.py of alisawuffles/DExperts.
    """
    return float(np.mean([_distinct_share(texts, n) for texts in continuations]))


def _distinct_share(texts: Sequence[str], n: int) -> float:
    sentences = [text.split() for text in texts]
    words = sum(len(sentence) for sentence in sentences)
    ngrams = {tuple(s[start : start + n]) for s in sentences for start in range(len(s) - n + 1)}
    return len(ngrams) / words if words else 0.0


def distinct_continuations(continuations: Sequence[Sequence[str]]) -> float:
    """Share of different texts among the continuations of all prompts: near 0 where all answers are alike."""
    texts = [text for group in continuations for text in group]
    return len(set(texts)) / len(texts)


def repetition(continuations: Sequence[Sequence[str]], n: int = 4) -> float:
    """How much a continuation repeats itself: 1 - different n-grams / n-grams, mean over the continuations.

    Args:
        continuations: P times k texts, words split at white space.
        n: length of the n-grams, >= 1.

    Returns: number in [0, 1); a continuation of fewer than n words repeats nothing and counts as 0.

    Source: seq-rep-n of Welleck et al. 2020 (arXiv 1908.04319), there of tokens.
    """
    return float(np.mean([_repeated_share(text.split(), n) for group in continuations for text in group]))


def _repeated_share(words: Sequence[str], n: int) -> float:
    ngrams = [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def measure(table: Generations, tail: BoolArray, max_new_tokens: int) -> dict[str, float]:
    """Every measure of one model's generations.

    Args:
        table: P prompts with k samples each.
        tail: (P,) bool from `prompt_tail`.
        max_new_tokens: the length limit in tokens.

    Returns: metric name -> value; `reward_prompt_cvar_10` only with at least 10 samples per prompt.
    """
    mixture = table.scores.reshape(-1)
    values = {"reward_mean": float(mixture.mean()), "reward_prompt_tail": float(table.scores[tail].mean())}
    for name, level in TAIL_LEVELS.items():
        values[f"reward_var_{name}"] = float(value_at_risk(mixture, level))
        values[f"reward_cvar_{name}"] = float(cvar(mixture, level))
    if table.scores.shape[1] >= PROMPT_CVAR_MIN_SAMPLES:
        values["reward_prompt_cvar_10"] = float(cvar(table.scores, 0.10).mean())
    values["reward_cvar_of_means_10"] = float(cvar(table.scores.mean(axis=1), 0.10))
    values["kl_sft"] = float(table.kl.mean())
    for n in (1, 2, 3):
        values[f"dist_{n}"] = distinct_ngrams(table.continuations, n)
    values["repetition_4"] = repetition(table.continuations, 4)
    values["distinct_continuations"] = distinct_continuations(table.continuations)
    values["length_mean"] = float(table.tokens.mean())
    values["length_limit_share"] = float((table.tokens >= max_new_tokens).mean())
    return values
