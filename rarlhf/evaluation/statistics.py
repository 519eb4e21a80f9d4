"""Spread over seeds, and paired differences between methods with the error of seeds and of prompts.

Letters for shapes: S seeds, P test prompts, k samples per prompt. docs/evaluation.md says how to read the intervals.
"""

from collections.abc import Callable, Mapping, Sequence
from math import sqrt
from statistics import mean as exact_mean
from statistics import stdev
from typing import TypedDict

import numpy as np
from scipy import stats

from rarlhf.config.params import EvaluateParams
from rarlhf.evaluation.generations import FloatArray

ROUNDING = 1e-9  # 2.2 less 2.0 is 0.2000000000000002 in floats


class Spread(TypedDict):
    """One metric of one method over seeds."""

    mean: float
    std: float | None  # sample standard deviation (ddof 1), None for one seed
    n: int  # seeds
    ci95: list[float] | None  # Student t interval of the mean at 95 %, None for one seed
    per_seed: list[float]


class Difference(TypedDict):
    """One metric of one method less another's."""

    mean: float
    n: int  # seeds
    seed_error: float | None  # standard error of the mean over seeds
    prompt_error: float | None  # bootstrap standard error from the choice of test prompts; None for a single prompt
    interval: list[float] | None  # at evaluate.confidence, both errors in it; of one seed, the prompts' error alone
    per_seed: list[float]


def over_seeds(values: Sequence[float]) -> Spread:
    """Mean, sample standard deviation and 95 % t interval (S - 1 degrees of freedom) over seeds.

    Args:
        values: one number per seed, at least one.

    Returns: `std` and `ci95` are None for one seed, which says nothing about the spread.
    """
    half = t_half_width(values, 0.95)
    mean = exact_mean(values)  # of equal numbers exactly that number
    return Spread(
        mean=mean,
        std=None if half is None else stdev(values),
        n=len(values),
        ci95=None if half is None else [mean - half, mean + half],
        per_seed=[float(value) for value in values],
    )


def t_half_width(values: Sequence[float], confidence: float) -> float | None:
    """Half the width of the Student t interval of the mean, confidence in (0, 1); None for fewer than two values."""
    if len(values) < 2:
        return None
    return _standard_error(values) * float(stats.t.ppf((1 + confidence) / 2, len(values) - 1))


def paired_difference(
    first: Sequence[float], second: Sequence[float], prompt_error: float | None, confidence: float
) -> Difference:
    """`first` less `second`, paired by seed, with an interval that covers both sources of error.

    Half width = sqrt((t x seed error)^2 + (z x prompt error)^2): t with S - 1 degrees for the few seeds, the normal
    quantile for the many prompts (Zou and Donner 2008, intervals of a sum). The noise of sampling continuations is in
    both parts, so that the interval is a little too wide.

    Args:
        first: S numbers, one per seed.
        second: S numbers of the same seeds.
        prompt_error: standard error of the difference from the choice of prompts (see `bootstrap`), >= 0; None where it
            is not known.
        confidence: in (0, 1).

    Returns: the difference. Its interval is None for one prompt, and where nothing varies (the perplexity of two
        methods with one model each): the error is unknown then, which does not mean that it is 0. The interval of one
        seed has the prompts' error alone, so it says nothing of another training.

    Raises: ValueError if the numbers of seeds differ.
    """
    if len(first) != len(second):
        raise ValueError(f"paired values need the same seeds, got {len(first)} and {len(second)}")
    per_seed = [float(a) - float(b) for a, b in zip(first, second, strict=True)]
    mean = exact_mean(per_seed)
    return Difference(
        mean=mean,
        n=len(per_seed),
        seed_error=None if len(per_seed) < 2 else _standard_error(per_seed),
        prompt_error=prompt_error,
        interval=_interval(per_seed, prompt_error, confidence),
        per_seed=per_seed,
    )


def _interval(per_seed: Sequence[float], prompt_error: float | None, confidence: float) -> list[float] | None:
    if prompt_error is None:
        return None
    seed_half = t_half_width(per_seed, confidence) or 0.0
    mean = exact_mean(per_seed)
    if seed_half + prompt_error <= ROUNDING * abs(mean):
        return None
    half = float(np.hypot(seed_half, prompt_error * stats.norm.ppf((1 + confidence) / 2)))
    return [mean - half, mean + half]


def like_kl(difference: Difference, kl_target: float, params: EvaluateParams) -> bool:
    """Whether two methods spent the same KL, so that their rewards can be compared.

    They did if their KL differs by at most `like_kl` times the target in every seed, or if the interval of the paired
    difference at `like_kl_confidence` lies within those bounds. The mean difference decides nothing: +1 and -1 nat are
    0 on average.

    Args:
        difference: of `kl_sft`, one method less the other.
        kl_target: nats, > 0.
        params: section `evaluate`, of which `like_kl` and `like_kl_confidence` are read.
    """
    if seeds_at_unlike_kl(difference, kl_target, params) == 0:
        return True
    interval = _interval(difference["per_seed"], difference["prompt_error"], params.like_kl_confidence)
    limit = params.like_kl * kl_target
    return interval is not None and -limit <= interval[0] and interval[1] <= limit


def seeds_at_unlike_kl(difference: Difference, kl_target: float, params: EvaluateParams) -> int:
    """In how many seeds the KL of two methods differs by more than `like_kl` times the target; see `like_kl`."""
    limit = params.like_kl * kl_target * (1 + ROUNDING)
    return sum(abs(value) > limit for value in difference["per_seed"])


def _standard_error(values: Sequence[float]) -> float:
    return stdev(values) / sqrt(len(values))


def bootstrap(
    values: Mapping[str, FloatArray], statistic: Callable[[FloatArray], float], seed: int, draws: int
) -> dict[str, FloatArray]:
    """A statistic's mean over seeds on resampled prompts, the same draw of prompts for every method and seed.

    This is the plain bootstrap: P prompts are drawn with replacement from the P that there are. For a mean, the
    standard deviation of its draws estimates sqrt((P - 1) / P) times the usual standard error. That factor is not
    corrected: it is 0.999 for 600 prompts, 0.975 for 20.

    Args:
        values: method -> (S, P, k) float, the same prompts in the same order for all.
        statistic: of one seed's (P, k) values.
        seed: of the draws, >= 0.
        draws: how many sets of P prompts are drawn, >= 2. The standard deviation of their results has a relative error
            of about 1 / sqrt(2 draws), 3 % for 500.

    Returns: method -> (draws,) float; the standard deviation of two methods' difference is the error of that difference
        that comes from the choice of prompts (what both share cancels, because the prompts are drawn together). Empty
        for a single prompt, which says nothing of how others would differ.
    """
    prompts = next(iter(values.values())).shape[1]
    if prompts < 2:
        return {method: np.empty(0) for method in values}
    chosen = np.random.default_rng(seed).integers(prompts, size=(draws, prompts))
    return {
        method: np.array([np.mean([statistic(of_seed[choice]) for of_seed in array]) for choice in chosen])
        for method, array in values.items()
    }


def distinguishable(interval: Sequence[float] | None) -> bool:
    """Whether an interval of a difference lies wholly on one side of zero; False where there is no interval."""
    return interval is not None and not interval[0] <= 0 <= interval[1]


def distinguishable_over_seeds(difference: Difference) -> bool:
    """Whether a difference says something of methods: its interval leaves out zero and is not of one seed.

    The interval of one seed has the prompts' error alone, so it says nothing of another training.
    """
    return difference["n"] > 1 and distinguishable(difference["interval"])
