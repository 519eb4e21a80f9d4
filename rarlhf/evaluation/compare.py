"""Two runs compared: the methods of one less those of the other, paired by seed and by test prompt.

With the generations of both runs everything is measured here, by the code of stage `evaluate`, and the intervals hold
the errors of seeds and of prompts. Without them the numbers of metrics/evaluate.json are paired by seed alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isclose
from typing import Any

from rarlhf.config.errors import UserError
from rarlhf.config.methods import label_of
from rarlhf.config.params import Params
from rarlhf.evaluation.compare_checks import check_same_metrics, check_same_prompts, check_same_tables
from rarlhf.evaluation.compare_runs import MeasuredRun
from rarlhf.evaluation.compare_sources import METRICS
from rarlhf.evaluation.comparisons import TestSet, compare_methods
from rarlhf.evaluation.generations import Tables
from rarlhf.evaluation.judged import SECOND
from rarlhf.evaluation.judgements import NO_JUDGEMENTS, NO_SECOND_SCORER, Judgements
from rarlhf.evaluation.names import COMPARED
from rarlhf.evaluation.statistics import Difference, Spread, like_kl, over_seeds, paired_difference
from rarlhf.evaluation.tables import NONE, flat
from rarlhf.evaluation.words import joined, listed

A, B = "A", "B"  # what the two runs are called
NOISE = 1e-6
PERPLEXITY = "perplexity_reference"  # the one metric that is not measured on generations


def differs(difference: Difference) -> bool:
    """Whether the two differ in any seed by more than a judge's rounding, which depends on the texts of its batch."""
    return any(abs(value) > NOISE for value in difference["per_seed"])


@dataclass(frozen=True)
class ComparedPair:
    """A method of run A and a method of run B.

    Attributes:
        methods: in A and in B.
        spreads: metric to its spread over seeds, in A and in B.
        differences: metric to B less A.
        like_kl: whether both are at like KL.
    """

    methods: tuple[str, str]
    spreads: tuple[Mapping[str, Spread], Mapping[str, Spread]]
    differences: Mapping[str, Difference]
    like_kl: bool

    @property
    def equal(self) -> bool:
        """Whether nothing differs in any seed."""
        return all(not differs(difference) for difference in self.differences.values())


@dataclass(frozen=True)
class RunComparison:
    """All that is known of two runs.

    Attributes:
        names: of A and B.
        pairs: in the order of A's methods.
        seeds: that both have.
        test: what was tested on.
        params: of A, or of B if the project no longer accepts A's; `evaluate` decides tail and intervals.
        by_prompts: whether the intervals hold the error of the choice of test prompts.
        changed: dotted keys of params.yaml that differ, with the values of A and B.
        notes: what was left out, and why.
    """

    names: tuple[str, str]
    pairs: Sequence[ComparedPair]
    seeds: Sequence[int]
    test: TestSet
    params: Params
    by_prompts: bool
    changed: Sequence[tuple[str, object, object]]
    notes: Sequence[str] = field(default=())


def compare_runs(a: MeasuredRun, b: MeasuredRun, methods: Sequence[tuple[str, str]]) -> RunComparison:
    """Compares two runs.

    Args:
        a: the first run.
        b: the second one, from which A is taken.
        methods: pairs of a method of A and one of B; if empty, every method that both have.

    Raises: UserError if they have no method or seed in common, a method is not there, or they were not tested alike.
    """
    pairs = _pairs(a, b, methods)
    seeds = [seed for seed in a.seeds if seed in b.seeds]
    if not seeds:
        raise UserError(
            f"{a.name} has seeds {listed(a.seeds)} and {b.name} has {listed(b.seeds)}: differences are paired by seed, "
            "so train one of them with seeds of the other"
        )
    params = a.params or b.params
    if params is None:
        raise UserError(
            f"this version of the project accepts params.yaml neither of {a.name} ({a.problem}) nor of {b.name}, so "
            "there are no settings for the intervals: compare them with the version that made them"
        )
    target = params.kl.model_copy(update={"target": min(a.kl_target, b.kl_target)})
    params = params.model_copy(update={"seeds": seeds, "kl": target})
    check_same_metrics(a, b)
    by_prompts = a.has_generations and b.has_generations
    if by_prompts:
        compared, test, notes = _by_prompts(a, b, pairs, params)
    else:
        compared, test = _by_seeds(a, b, pairs, params)
        notes = _lacking(a, b)
    changed = changes(a.values, b.values)
    names = (a.name, b.name)
    return RunComparison(names, compared, seeds, test, params, by_prompts, changed, [*_left_out(a, b, seeds), *notes])


def changes(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[tuple[str, object, object]]:
    """The dotted keys whose values differ, in the order of `a`, then of `b`; `NONE` where one has no such key."""
    one, other = flat(a), flat(b)
    values = {key: (one.get(key, NONE), other.get(key, NONE)) for key in [*one, *other]}
    return [(key, first, second) for key, (first, second) in values.items() if first != second]


def _pairs(a: MeasuredRun, b: MeasuredRun, methods: Sequence[tuple[str, str]]) -> Sequence[tuple[str, str]]:
    for run, names in ((a, [first for first, _ in methods]), (b, [second for _, second in methods])):
        for name in names:
            if name not in run.methods:
                raise UserError(f"{run.name} has no method {name}; it has {listed(run.methods)}")
    pairs = methods or [(method, method) for method in a.methods if method in b.methods]
    if not pairs:
        raise UserError(
            f"{a.name} has {listed(a.methods) or 'no methods'} and {b.name} has {listed(b.methods) or 'no methods'}: "
            "none in common; name a method of each, as in A:rlhf B:ra_rlhf"
        )
    return pairs


def _by_prompts(
    a: MeasuredRun, b: MeasuredRun, pairs: Sequence[tuple[str, str]], params: Params
) -> tuple[list[ComparedPair], TestSet, list[str]]:
    compared, notes = [], []
    unjudged: dict[str, list[str]] = {}  # why the second scorer is left out -> of which pairs
    for first, second in pairs:
        tables = {A: a.table(first, params.seeds), B: b.table(second, params.seeds)}
        check_same_tables(tables, (a.name, b.name))
        own = {A: a.per_seed(first, PERPLEXITY, params.seeds), B: b.per_seed(second, PERPLEXITY, params.seeds)}
        judgements, lacking = _second_opinions(a, b, (first, second), tables)
        if lacking:
            unjudged.setdefault(lacking, []).append(pair_label((first, second)))
        evaluation = compare_methods(tables, _known(own, params.seeds), params, judgements)
        for run, side, method in ((a, A, first), (b, B, second)):
            if own[side] is None:
                notes.append(f"The perplexity is left out: {METRICS} of {run.name} does not have it.")
            elif _is_stale(run, method, evaluation["methods"][side], params.seeds):
                own[side] = None
                notes.append(
                    f"The perplexity is left out: {METRICS} of {run.name} is of other generations. "
                    "`dvc repro evaluate` renews it."
                )
        left_out = [] if own[A] and own[B] else [PERPLEXITY]
        found = evaluation["comparisons"][f"{B}_minus_{A}"]
        spreads = tuple(_without(evaluation["methods"][side], left_out) for side in (A, B))
        differences = {metric: value for metric, value in found["metrics"].items() if metric not in left_out}
        compared.append(ComparedPair((first, second), (spreads[0], spreads[1]), differences, found["like_kl"]))
    notes += [_without_second_scorer(lacking, of, len(pairs)) for lacking, of in unjudged.items()]
    return compared, evaluation["test"], list(dict.fromkeys(notes))


def _known(perplexities: Mapping[str, Sequence[float] | None], seeds: Sequence[int]) -> dict[str, dict[int, float]]:
    """Perplexities by seed; one that is not known is 1."""
    return {side: dict(zip(seeds, values or [1.0] * len(seeds), strict=True)) for side, values in perplexities.items()}


def _second_opinions(
    a: MeasuredRun, b: MeasuredRun, methods: tuple[str, str], tables: Tables
) -> tuple[Judgements, str]:
    """What the second scorer says of A and B, and why it says nothing where it does not.

    The reason is empty if nobody misses it: neither run has judgements, or neither has a second scorer.
    """
    of_a, of_b = (
        run.second_opinions(method, tables[side]) for run, side, method in zip((a, b), (A, B), methods, strict=True)
    )
    found = [f"{run.name} {of.lacking}" for run, of in ((a, of_a), (b, of_b)) if of.lacking]
    if not found and of_a.scorer != of_b.scorer:
        found = [f"{a.name} and {b.name} have different ones"]
    if found:
        missed = (a.has_judgements or b.has_judgements) and not of_a.lacking == of_b.lacking == NO_SECOND_SCORER
        return NO_JUDGEMENTS, joined(dict.fromkeys(found)) if missed else ""
    return Judgements({A: of_a.by_seed, B: of_b.by_seed}), ""


def _without_second_scorer(lacking: str, of: Sequence[str], pairs: int) -> str:
    """A line on the pairs, of all that are compared, without a second scorer, and why."""
    return f"The second scorer is left out{f' of {joined(of)}' if len(of) < pairs else ''}: {lacking}."


def pair_label(methods: tuple[str, str]) -> str:
    """`RA-RLHF`, or `CVaR-RLHF less RA-RLHF` for a method of A and another one of B."""
    first, second = map(label_of, methods)
    return first if first == second else f"{second} less {first}"


def _is_stale(run: MeasuredRun, method: str, measured: Mapping[str, Spread], seeds: Sequence[int]) -> bool:
    """Whether the run's evaluation has another mean reward than its generations."""
    told = run.per_seed(method, "reward_mean", seeds)
    return told is not None and not all(map(isclose, told, measured["reward_mean"]["per_seed"]))


def _without(spreads: Mapping[str, Spread], left_out: Sequence[str]) -> dict[str, Spread]:
    return {metric: spreads[metric] for metric in (*COMPARED, *SECOND) if metric in spreads and metric not in left_out}


def _by_seeds(
    a: MeasuredRun, b: MeasuredRun, pairs: Sequence[tuple[str, str]], params: Params
) -> tuple[list[ComparedPair], TestSet]:
    test = check_same_prompts(a, b, changes(a.values, b.values))
    compared = []
    for first, second in pairs:
        of_a, of_b = (
            {m: run.per_seed(name, m, params.seeds) for m in COMPARED} for run, name in ((a, first), (b, second))
        )
        both = {metric: (one, other) for metric in COMPARED if (one := of_a[metric]) and (other := of_b[metric])}
        spreads = tuple({metric: over_seeds(values[side]) for metric, values in both.items()} for side in (0, 1))
        differences = {
            metric: paired_difference(other, one, 0.0, params.evaluate.confidence)
            for metric, (one, other) in both.items()
        }
        alike = like_kl(differences["kl_sft"], params.kl.target, params.evaluate)
        compared.append(ComparedPair((first, second), (spreads[0], spreads[1]), differences, alike))
    return compared, test


def seeds_named(seeds: Sequence[int]) -> str:
    """`seed 2`, `seeds 1, 2`."""
    return f"{'seed' if len(seeds) == 1 else 'seeds'} {listed(seeds)}"


def _lacking(a: MeasuredRun, b: MeasuredRun) -> list[str]:
    lacking = [run for run in (a, b) if not run.has_generations]
    alone = (
        f"Without the generations of {joined(run.name for run in lacking)} the differences are paired by seed alone: "
        "the error from the choice of test prompts is not in their intervals."
    )
    return [alone, *(f"Generations of {run.name}: {run.source.lacking}." for run in lacking)]


def _left_out(a: MeasuredRun, b: MeasuredRun, seeds: Sequence[int]) -> list[str]:
    notes = []
    for run, side in ((a, A), (b, B)):
        alone = [seed for seed in run.seeds if seed not in seeds]
        if alone:
            notes.append(f"Only {side} has {seeds_named(alone)}, which {'is' if len(alone) == 1 else 'are'} left out.")
    if len(seeds) == 1:
        notes.append(
            "One seed in common: the intervals contain the error of the test prompts alone, not that of the training."
            if a.has_generations and b.has_generations
            else "One seed in common has no spread over seeds, so the differences have no intervals."
        )
    return notes
