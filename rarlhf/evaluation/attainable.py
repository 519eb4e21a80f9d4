"""What was attainable at a method's KL, and the share of it that the method reached.

The attainable is the best that weights on samples of the SFT model to the test prompts reach (`rarlhf.risk.plan`), with
no training. A share is a rise over a rise:

    (method - SFT) / (attainable at the method's own KL - SFT)

The method's rise is of its generations over SFT's generations of the same seed; the attainable rise is of the weighted
samples over the same samples unweighted. So each rise is within one set of draws, and both are on the same prompts.
"""

from collections.abc import Mapping, Sequence
from typing import TypedDict

import numpy as np

from rarlhf.config.errors import UserError
from rarlhf.config.methods import is_trained, label_of
from rarlhf.config.params import EvaluateParams
from rarlhf.evaluation.generations import BoolArray, FloatArray, Generations, IntArray, Tables
from rarlhf.evaluation.metrics import cvar, prompt_tail
from rarlhf.evaluation.pool import BestOfNCurve, best_of_n_curve
from rarlhf.evaluation.statistics import Spread, over_seeds
from rarlhf.risk.plan import Answers, frontier, largest_kl, reference

SFT = "sft"
LEVEL = 0.10  # of the CVaR whose attainable is computed, as in reward_cvar_10
SHARES: Mapping[str, str] = {  # metric -> its share of the attainable
    "reward_mean": "share_mean",
    "reward_prompt_tail": "share_prompt_tail",
    "reward_cvar_10": "share_cvar_10",
}
POINTS = 12  # of the curves, evenly spaced in sqrt(KL), in which a rise is nearly linear
LEAST_KL = 0.05  # nats; below it both rises are smaller than their noise
LEAST_RISE = (
    1e-6  # score units; where the answers of a tail score alike, nothing is attainable and no share has a meaning
)


class Attainable(TypedDict):
    """The attainable curves, and why a method has no share."""

    prompts: int
    samples: int  # of SFT, per prompt
    tail_prompts: int
    kl_cap: float  # nats; the samples show nothing beyond it
    kl: list[float]  # nats, rising from 0, which is SFT
    metrics: dict[str, list[float]]  # the mean of the best mean; CVaR and prompt tail of the best CVaR
    left_out: dict[str, str]  # method -> reason
    best_of_n: BestOfNCurve  # of the same samples


class Prompts(TypedDict):
    """The prompts of the samples."""

    ids: IntArray  # (P,)
    scores: FloatArray  # (P,) of the prompts alone


def attainable(scores: FloatArray, prompts: Prompts, params: EvaluateParams) -> Attainable:
    """The attainable mean, CVaR 10 % and prompt tail against KL.

    Args:
        scores: (P, N) of SFT's samples, score units.
        prompts: whose samples they are.
        params: the rule of the prompt tail, which is taken among these prompts.

    Returns: the curves, without the prompt tail where none of these prompts is in it.

    Raises: UserError if the samples leave nothing to choose from, or a score is not finite.
    """
    answers = Answers(scores.astype(np.float64))
    tail, cap = tail_among(prompts["scores"], params), largest_kl(answers)
    kls = [cap * (point / POINTS) ** 2 for point in range(1, POINTS + 1)]
    start, rows = reference(answers, LEVEL, tail), frontier(answers, LEVEL, kls, tail)
    metrics = {
        "reward_mean": [start.mean, *(row.best_mean.mean for row in rows)],
        "reward_cvar_10": [start.cvar, *(row.best_cvar.cvar for row in rows)],
    }
    tails = [policy.prompt_tail for policy in (start, *(row.best_cvar for row in rows))]
    if tail is not None:
        metrics["reward_prompt_tail"] = [value for value in tails if value is not None]
    size = 0 if tail is None else int(tail.sum())
    count, samples = scores.shape
    return Attainable(
        prompts=count,
        samples=samples,
        tail_prompts=size,
        kl_cap=cap,
        kl=[0.0, *kls],
        metrics=metrics,
        left_out={},
        best_of_n=best_of_n_curve(scores, tail, LEVEL),
    )


def tail_among(prompt_scores: FloatArray, params: EvaluateParams) -> BoolArray | None:
    """The prompt tail among these prompts, (P,) bool; None where the threshold leaves none."""
    try:
        return prompt_tail(prompt_scores, params.tail_quantile, params.tail_threshold)
    except UserError:
        return None


def at_kl(curves: Attainable, metric: str, kl: float) -> float | None:
    """The attainable value at a KL, linear in sqrt(KL) between the points; None above the cap and below 0."""
    if not 0 <= kl <= curves["kl"][-1]:
        return None
    return float(np.interp(np.sqrt(kl), np.sqrt(curves["kl"]), curves["metrics"][metric]))


def shares(
    tables: Tables, curves: Attainable, prompts: Prompts, params: EvaluateParams
) -> tuple[dict[str, dict[str, Spread]], Attainable]:
    """The shares of every trained method over seeds.

    Args:
        tables: generations of every method and seed.
        curves: the attainable.
        prompts: of the samples; the shares are on these prompts.
        params: the rule of the prompt tail.

    Returns: method -> share's name -> over seeds; and the attainable with the reason for each method that has none.
    """
    found: dict[str, dict[str, Spread]] = {}
    left_out: dict[str, str] = {}
    for method in filter(is_trained, tables):
        reason = _reason(tables, method, curves, prompts)
        if reason is None:
            found[method] = _shares(tables[method], tables[SFT], curves, prompts, params)
        else:
            left_out[method] = reason
    return found, Attainable(**{**curves, "left_out": left_out})


def _reason(tables: Tables, method: str, curves: Attainable, prompts: Prompts) -> str | None:
    """Why a method has no shares; None if it has."""
    if SFT not in tables:
        return f"{label_of(SFT)} was not generated with, so no rise over it is known"
    kls = [float(_on(table, prompts).kl.mean()) for table in tables[method].values()]
    cap = curves["kl_cap"]
    above, below = sum(kl > cap for kl in kls), sum(kl < LEAST_KL for kl in kls)
    if above:
        return (
            f"its KL is above {cap:.2f} nats in {above} of {len(kls)} seeds, more than {curves['samples']} samples "
            "to a prompt can show; raise plan.test.samples"
        )
    return f"its KL is below {LEAST_KL} nats in {below} of {len(kls)} seeds, so that nothing rose" if below else None


def _shares(
    by_seed: Mapping[int, Generations],
    starts: Mapping[int, Generations],
    curves: Attainable,
    prompts: Prompts,
    params: EvaluateParams,
) -> dict[str, Spread]:
    tail = tail_among(prompts["scores"], params)
    found: dict[str, list[float | None]] = {SHARES[metric]: [] for metric in curves["metrics"]}
    for seed, table in by_seed.items():
        own, start = _on(table, prompts), _on(starts[seed], prompts)
        kl, values, before = float(own.kl.mean()), _values(own, tail), _values(start, tail)
        for metric, numbers in curves["metrics"].items():
            best = at_kl(curves, metric, kl)
            rise = 0.0 if best is None else best - numbers[0]
            found[SHARES[metric]].append((values[metric] - before[metric]) / rise if rise > LEAST_RISE else None)
    whole = {share: [number for number in numbers if number is not None] for share, numbers in found.items()}
    return {share: over_seeds(numbers) for share, numbers in whole.items() if len(numbers) == len(by_seed)}


def _values(table: Generations, tail: BoolArray | None) -> dict[str, float]:
    values = {
        "reward_mean": float(table.scores.mean()),
        "reward_cvar_10": float(cvar(table.scores.reshape(-1), LEVEL)),
    }
    return values if tail is None else values | {"reward_prompt_tail": float(table.scores[tail].mean())}


def _on(table: Generations, prompts: Prompts) -> Generations:
    """The generations to these prompts.

    Raises: UserError if a prompt is not among those of the generations.
    """
    if np.array_equal(table.prompt_ids, prompts["ids"]):
        return table
    places = {int(number): place for place, number in enumerate(table.prompt_ids)}
    missing = [int(number) for number in prompts["ids"] if int(number) not in places]
    if missing:
        raise UserError(f"test prompt {missing[0]} has samples and no generations: run stage `samples` again")
    rows = [places[int(number)] for number in prompts["ids"]]
    return Generations(
        prompt_ids=table.prompt_ids[rows],
        prompts=tuple(table.prompts[row] for row in rows),
        prompt_scores=table.prompt_scores[rows],
        continuations=tuple(table.continuations[row] for row in rows),
        scores=table.scores[rows],
        kl=table.kl[rows],
        tokens=table.tokens[rows],
        draws=None if table.draws is None else table.draws[rows],
    )


def sentences(curves: Attainable, names: Sequence[str]) -> list[str]:
    """What the shares are, and the methods that have none, for the report.

    Args:
        curves: the attainable.
        names: the methods that have shares.
    """
    told = [
        f"The share of the attainable is the method's rise over {label_of(SFT)}, divided by the rise that the best "
        "policy of the same KL would have.",
        f"That policy is found without training, by weighting {curves['samples']} samples of {label_of(SFT)} to each "
        f"of {curves['prompts']:,} test prompts, for the highest mean or the highest CVaR at 10 %.",
    ]
    return (told if names else []) + [
        f"{label_of(method)} has no share of the attainable: {reason}." for method, reason in curves["left_out"].items()
    ]
