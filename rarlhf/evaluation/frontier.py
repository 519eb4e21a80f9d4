"""Methods at common KL: what each seed has at a KL, interpolated over the KL targets it was trained to.

A cell of the comparison is the same pipeline with another `kl.target`. A seed of a method has a point (KL, metrics) in
every cell, and SFT at KL 0. Between two points a reward is linear in sqrt(KL) and the perplexity in KL; beyond the last
point there is no value. Close to SFT the best policies' rewards rise as sqrt(KL). A straight line in KL from SFT on
would be too low between the points, and most of all for the method whose points are the farthest.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rarlhf.config.methods import RLHF, in_order, is_trained
from rarlhf.config.params import EvaluateParams
from rarlhf.evaluation.ablation import Cells
from rarlhf.evaluation.comparisons import Evaluation
from rarlhf.evaluation.statistics import Difference, Spread, over_seeds, paired_difference
from rarlhf.evaluation.tables import tested_on
from rarlhf.evaluation.words import counted, listed

SFT = "sft"
# In the order of the tables; the first three are rewards.
METRICS = ("reward_cvar_10", "reward_prompt_tail", "reward_mean", "perplexity_reference")
LINEAR_IN_KL = ("perplexity_reference",)  # the others are linear in sqrt(KL)
LOWERED = 0.2  # the highest common KL may be this share below the highest target


@dataclass(frozen=True)
class SeedCurve:
    """The points of one method and seed, by rising KL.

    Attributes:
        kl: n numbers, nats.
        metrics: metric -> n numbers.
    """

    kl: tuple[float, ...]
    metrics: Mapping[str, tuple[float, ...]]

    def at(self, metric: str, kl: float) -> float | None:
        """The metric at a KL, between the two points beside it; None outside the points, and if it was not measured."""
        if metric not in self.metrics or not self.kl[0] <= kl <= self.kl[-1]:
            return None
        scale = np.asarray if metric in LINEAR_IN_KL else np.sqrt
        return float(np.interp(scale(kl), scale(self.kl), self.metrics[metric]))


@dataclass(frozen=True)
class FrontierRow:
    """One method at one KL.

    Attributes:
        method: as in params.yaml.
        kl: nats.
        metrics: each over the seeds that reach the KL; None where none does.
        differences: to RLHF at the same KL, by the seeds in which both reach it; empty for RLHF.
        missing: seeds that do not reach the KL.
    """

    method: str
    kl: float
    metrics: Mapping[str, Spread | None]
    differences: Mapping[str, Difference | None]
    missing: Sequence[int]


@dataclass(frozen=True)
class FrontierTable:
    """Methods at common KL.

    Attributes:
        title: what was compared.
        seeds: of every cell.
        kls: the common KLs, nats, rising.
        rows: of every KL, of every trained method.
        curves: method -> one curve for each seed.
        attainable: metric -> (KL, value) of the best policy that the test samples show, by rising KL; empty where
            it was not computed.
        scored: method -> answers that its training had scored.
        params: section `evaluate`.
    """

    title: str
    seeds: Sequence[int]
    kls: Sequence[float]
    rows: Sequence[FrontierRow]
    curves: Mapping[str, Sequence[SeedCurve]]
    attainable: Mapping[str, Sequence[tuple[float, float]]]
    scored: Mapping[str, int]
    params: EvaluateParams

    @property
    def compared(self) -> bool:
        """Whether there are differences to RLHF."""
        return RLHF in self.curves


def compare_at_kl(name: str, cells: Cells, params: EvaluateParams) -> FrontierTable:
    """Every trained method at common KLs, less RLHF.

    Args:
        name: of the comparison.
        cells: at least one, all with the same methods and seeds, each with its own KL target.
        params: section `evaluate`.
    """
    evaluations = [evaluation for _, evaluation in cells.values()]
    first = evaluations[0]
    curves = {m: seed_curves(evaluations, m) for m in in_order(first["methods"]) if is_trained(m)}
    kls = common_kls([e["kl_target"] for e in evaluations], curves.values())
    rows = [_row(method, kl, curves, evaluations, params) for kl in kls for method in curves]
    targets = listed(f"{e['kl_target']:g}" for e in evaluations)
    title = (
        f"{name}: methods at common KL on preset {first['preset']}, trained to {targets} nats, "
        f"{counted(len(first['seeds']), 'seed')} ({listed(first['seeds'])}); {tested_on(first)}"
    )
    scored = first.get("scored_answers", {})
    return FrontierTable(title, first["seeds"], kls, rows, curves, _attainable(evaluations), scored, params)


def seed_curves(evaluations: Iterable[Evaluation], method: str) -> list[SeedCurve]:
    """The points of a method in several evaluations, a curve for each seed; SFT, where it was measured, is at KL 0.

    Args:
        evaluations: with the same seeds; those without the method count for nothing.
        method: one that some of them have.
    """
    having = [e["methods"] for e in evaluations if method in e["methods"]]
    starts = [methods[SFT] for methods in having if SFT in methods][:1]
    seeds = range(having[0][method]["kl_sft"]["n"])
    return [_curve([start | _at_zero(seed) for start in starts], [m[method] for m in having], seed) for seed in seeds]


def _at_zero(seed: int) -> dict[str, Spread]:
    """The KL of SFT to itself, which is 0 whatever is sampled."""
    return {"kl_sft": over_seeds([0.0] * (seed + 1))}


def _curve(starts: Sequence[Mapping[str, Spread]], own: Sequence[Mapping[str, Spread]], seed: int) -> SeedCurve:
    points = sorted([*starts, *own], key=lambda spreads: spreads["kl_sft"]["per_seed"][seed])

    def column(metric: str) -> tuple[float, ...]:
        return tuple(spreads[metric]["per_seed"][seed] for spreads in points)

    measured = [metric for metric in METRICS if all(metric in spreads for spreads in points)]
    return SeedCurve(column("kl_sft"), {metric: column(metric) for metric in measured})


def common_kls(targets: Iterable[float], curves: Iterable[Sequence[SeedCurve]]) -> list[float]:
    """The KLs at which methods are compared: the targets.

    The highest target is lowered to the highest KL that every method reaches in every seed, by at most the share
    `LOWERED`, since a training that ends a little below its target has no value there. It is lowered by more where a
    method would be left without any seed.
    """
    *lower, highest = sorted(set(targets))
    ends = [[curve.kl[-1] for curve in of_method] for of_method in curves]
    reached = min(highest, np.floor(min(map(min, ends)) * 100) / 100)
    lowered = max(reached, (1 - LOWERED) * highest)
    if lowered > min(map(max, ends)):
        lowered = reached
    return [*(kl for kl in lower if kl < lowered), float(lowered)]


def _row(
    method: str,
    kl: float,
    curves: Mapping[str, Sequence[SeedCurve]],
    evaluations: Sequence[Evaluation],
    params: EvaluateParams,
) -> FrontierRow:
    own, seeds = curves[method], evaluations[0]["seeds"]
    missing = [seed for seed, curve in zip(seeds, own, strict=True) if curve.at("reward_mean", kl) is None]
    metrics = {metric: _spread([curve.at(metric, kl) for curve in own]) for metric in METRICS}
    differences: dict[str, Difference | None] = {}
    if RLHF in curves and method != RLHF:
        for metric in METRICS:
            error = _prompt_error(evaluations, method, metric, kl)
            at = [[curve.at(metric, kl) for curve in of] for of in (own, curves[RLHF])]
            differences[metric] = paired(at[0], at[1], error, params.confidence)
    return FrontierRow(method, kl, metrics, differences, missing)


def _spread(values: Iterable[float | None]) -> Spread | None:
    there = [value for value in values if value is not None]
    return over_seeds(there) if there else None


def paired(
    first: Iterable[float | None], second: Iterable[float | None], prompt_error: float | None, confidence: float
) -> Difference | None:
    """The paired difference over the seeds in which both have a value; None where there is none.

    Raises: ValueError if the numbers of seeds differ.
    """
    both = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    if not both:
        return None
    known = (
        prompt_error if len(both) > 1 else None
    )  # the prompts' error alone would make an interval that is too narrow
    return paired_difference([a for a, _ in both], [b for _, b in both], known, confidence)


def _prompt_error(evaluations: Sequence[Evaluation], method: str, metric: str, kl: float) -> float | None:
    """The error of a difference to RLHF from the choice of prompts: the larger one of the cells beside a KL.

    Those are the cells with the next lower and the next higher target. None where one of them does not know it.
    """
    by_target = sorted(evaluations, key=lambda evaluation: evaluation["kl_target"])
    beside = [e for e in by_target if e["kl_target"] <= kl][-1:] + [e for e in by_target if e["kl_target"] >= kl][:1]
    differences = (e["comparisons"][f"{method}_minus_{RLHF}"]["metrics"][metric] for e in beside)
    errors = [difference["prompt_error"] for difference in differences]
    return None if None in errors else max(error for error in errors if error is not None)


def _attainable(evaluations: Sequence[Evaluation]) -> dict[str, list[tuple[float, float]]]:
    """The attainable curves: equal in all cells, since they depend on SFT and its samples alone."""
    found = evaluations[0].get("attainable")
    if found is None:
        return {}
    return {metric: list(zip(found["kl"], values, strict=True)) for metric, values in found["metrics"].items()}


def mean_lines(curves: Sequence[SeedCurve], metric: str, points: int = 60) -> Iterator[tuple[float, float]]:
    """(KL, mean over seeds) where every seed has a value, for a picture."""
    low, high = max(curve.kl[0] for curve in curves), min(curve.kl[-1] for curve in curves)
    for kl in np.linspace(low, high, points) if low < high else ():
        values = [value for curve in curves if (value := curve.at(metric, float(kl))) is not None]
        yield float(kl), float(np.mean(values))
