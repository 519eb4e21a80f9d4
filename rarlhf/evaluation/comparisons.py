"""The content of metrics/evaluate.json: every metric over seeds, and the differences between methods.

Letters for shapes: S seeds, P test prompts, k samples per prompt.
"""

from collections.abc import Callable, Mapping
from itertools import combinations
from math import isfinite
from typing import NotRequired, TypedDict

import numpy as np

from rarlhf.config.errors import UserError
from rarlhf.config.methods import in_order
from rarlhf.config.params import EvaluateParams, Params
from rarlhf.evaluation.attainable import Attainable
from rarlhf.evaluation.clusters import CriticalPrompts, critical_prompts
from rarlhf.evaluation.cost import Cost, costs, scored_answers
from rarlhf.evaluation.generations import BoolArray, FloatArray, Generations, Tables, check_comparable, stacked
from rarlhf.evaluation.judged import SECOND, measure_judgement
from rarlhf.evaluation.judgements import NO_JUDGEMENTS, Judgements, second_scores
from rarlhf.evaluation.metrics import cvar, kl_by_decile, measure, prompt_tail
from rarlhf.evaluation.names import COMPARED
from rarlhf.evaluation.oracle import measure_by_oracle
from rarlhf.evaluation.statistics import Difference, Spread, bootstrap, like_kl, over_seeds, paired_difference
from rarlhf.evaluation.words import percent

DEFINITIONS = 2  # version of the definitions in docs/evaluation.md; raised when one changes
SHORT: Mapping[str, str] = {  # names in DVC's displays
    "reward_mean": "mean",
    "reward_prompt_tail": "tail",
    "reward_cvar_10": "cvar_10",
    "kl_sft": "kl",
    "perplexity_reference": "perplexity",
}


class TestSet(TypedDict):
    """What was tested on."""

    prompts: int
    samples: int  # per prompt
    tail_prompts: int
    tail_rule: str


class Comparison(TypedDict):
    """One method less another."""

    first: str
    second: str
    like_kl: bool  # as `statistics.like_kl` decides
    metrics: dict[str, Difference]


class PreferenceOf(TypedDict):
    """How a method's answers did against another's, over all seeds and prompts."""

    wins: int
    losses: int
    ties: int
    interval: list[float] | None  # of the win rate, from the choice of prompts


class Preference(TypedDict):
    """What a judge that compares answers prefers."""

    against: str
    prompts: int
    methods: dict[str, PreferenceOf]


class Evaluation(TypedDict):
    """The content of metrics/evaluate.json."""

    preset: str
    seeds: list[int]
    methods: dict[str, dict[str, Spread]]
    comparisons: dict[str, Comparison]  # key "FIRST_minus_SECOND"
    test: TestSet
    confidence: float  # of the comparisons' intervals; `ci95` is always 95 %
    kl_target: float  # nats
    definitions: int
    kl_by_decile: dict[str, list[list[float]]]  # method -> S lists of the mean KL by decile of the prompt score, nats
    scored_answers: dict[str, int]  # method -> answers that one training of it has scored, the plan's included
    costs: dict[str, Cost]
    attainable: NotRequired[Attainable]
    critical_prompts: NotRequired[CriticalPrompts]  # where a language model judges and evaluate.clusters is above 1
    preference: NotRequired[Preference]  # where a judge compares answers
    oracle: NotRequired[dict[str, dict[str, Spread]]]  # source generator: method -> metric, as docs/evaluation.md says


def compare_methods(
    tables: Tables,
    perplexities: Mapping[str, Mapping[int, float]],
    params: Params,
    judgements: Judgements = NO_JUDGEMENTS,
) -> Evaluation:
    """Compute the content of metrics/evaluate.json.

    Args:
        tables: generations of every method and seed on the same prompts; a method that training starts from is one
            model with a set of generations per seed, so that its spread comes from sampling alone.
        perplexities: perplexity of the reference texts of every method that is a model, and seed.
        params: `data.source`, `evaluate`, `kl.target`, `ppo.max_new_tokens`, `preset` and `seeds` are read; for the
            answers scored also `methods`, `ppo`, `plan` and `fit`; `judge.toxicity.threshold` with judgements.
        judgements: what the judges say of the same generations.

    Returns: a JSON-ready dictionary.

    Raises: UserError if the tables differ in their seeds, prompts or samples, the prompt tail is empty, or a metric is
        not finite.
    """
    check_comparable(tables)
    tail = tail_of(tables, params)
    methods = {
        method: _spreads(method, _measured(method, by_seed, perplexities.get(method, {}), tail, params, judgements))
        for method, by_seed in tables.items()
    }
    evaluation = Evaluation(
        preset=params.preset,
        seeds=list(params.seeds),
        methods=methods,
        comparisons=_compare(methods, _prompt_draws(tables, judgements, tail, params.evaluate), params),
        test=_test_set(tables, tail, params),
        confidence=params.evaluate.confidence,
        kl_target=params.kl.target,
        definitions=DEFINITIONS,
        kl_by_decile={method: [kl_by_decile(t) for t in by_seed.values()] for method, by_seed in tables.items()},
        scored_answers=scored_answers(params),
        costs=costs(params, tables),
    )
    if judgements.embeddings is not None:
        chosen = params.evaluate
        found = critical_prompts(tables, tail, judgements.embeddings, chosen.clusters, chosen.seed)
        if found is not None:
            evaluation["critical_prompts"] = found
    if params.data.source == "generator":
        evaluation["oracle"] = measure_by_oracle(tables, tail)
    return evaluation


def tail_of(tables: Tables, params: Params) -> BoolArray:
    """The prompt tail of these tables' test prompts: (P,) bool."""
    return prompt_tail(any_table(tables).prompt_scores, params.evaluate.tail_quantile, params.evaluate.tail_threshold)


def any_table(tables: Tables) -> Generations:
    """The first table; all tables have the same prompts."""
    return next(iter(next(iter(tables.values())).values()))


def _measured(
    method: str,
    by_seed: Mapping[int, Generations],
    perplexities: Mapping[int, float],
    tail: BoolArray,
    params: Params,
    judgements: Judgements,
) -> dict[int, dict[str, float]]:
    """Seed -> metric -> value."""
    measured = {}
    for seed, table in by_seed.items():
        values = measure(table, tail, params.ppo.max_new_tokens)
        if seed in perplexities:
            values["perplexity_reference"] = perplexities[seed]
        judged = judgements.methods.get(method)
        if judged is not None:
            values |= measure_judgement(judged[seed], tail, params.judge.toxicity.threshold)
        measured[seed] = values
    return measured


def _spreads(method: str, measured: Mapping[int, Mapping[str, float]]) -> dict[str, Spread]:
    for seed, values in measured.items():
        for name, value in values.items():
            if not isfinite(value):
                raise UserError(
                    f"{name} of {method}, seed {seed}, is {value}: the model diverged, or its scores are too large"
                )
    names = next(iter(measured.values()))
    return {
        name: over_seeds([values[name] for values in measured.values()])
        for name in names
        if all(name in values for values in measured.values())
    }


def _test_set(tables: Tables, tail: BoolArray, params: Params) -> TestSet:
    prompts, samples = any_table(tables).scores.shape
    if params.evaluate.tail_threshold is not None:
        rule = f"prompt score at or below {params.evaluate.tail_threshold:g}"
    else:
        rule = f"lowest {percent(params.evaluate.tail_quantile or 0)} by prompt score"
    return TestSet(prompts=prompts, samples=samples, tail_prompts=int(tail.sum()), tail_rule=rule)


def _prompt_draws(
    tables: Tables, judgements: Judgements, tail: BoolArray, params: EvaluateParams
) -> dict[str, dict[str, FloatArray]]:
    """Metric -> method -> the metric on resampled prompts; tail prompts are drawn from the fixed tail."""
    kl = {method: stacked(by_seed, "kl") for method, by_seed in tables.items()}
    jobs: dict[str, tuple[Mapping[str, FloatArray], Callable[[FloatArray], float]]] = {"kl_sft": (kl, _mean)}
    scores = {method: stacked(by_seed, "scores") for method, by_seed in tables.items()}
    for names, values in ((SECOND.values(), scores), (SECOND, second_scores(judgements))):
        mean, prompt_tail_, cvar_10 = names
        jobs[mean] = (values, _mean)
        jobs[prompt_tail_] = ({method: array[:, tail] for method, array in values.items()}, _mean)
        jobs[cvar_10] = (values, _cvar_10)
    return {
        metric: bootstrap(values, statistic, params.seed, params.bootstrap_draws)
        for metric, (values, statistic) in jobs.items()
        if values
    }


def _mean(values: FloatArray) -> float:
    return float(values.mean())


def _cvar_10(values: FloatArray) -> float:
    return float(cvar(values.reshape(-1), 0.10))


def _compare(
    methods: Mapping[str, Mapping[str, Spread]], draws: Mapping[str, Mapping[str, FloatArray]], params: Params
) -> dict[str, Comparison]:
    """Every later method less every earlier one, in the order in which they are made."""
    comparisons = {}
    for second, first in combinations(in_order(methods), 2):
        metrics = {
            metric: paired_difference(
                methods[first][metric]["per_seed"],
                methods[second][metric]["per_seed"],
                _prompt_error(draws.get(metric), first, second),
                params.evaluate.confidence,
            )
            for metric in (*COMPARED, *SECOND)
            if metric in methods[first] and metric in methods[second]
        }
        alike = like_kl(metrics["kl_sft"], params.kl.target, params.evaluate)
        comparisons[f"{first}_minus_{second}"] = Comparison(first=first, second=second, like_kl=alike, metrics=metrics)
    return comparisons


def _prompt_error(draws: Mapping[str, FloatArray] | None, first: str, second: str) -> float | None:
    """0 for the perplexity, whose reference texts count as fixed. None where nothing could be drawn."""
    if draws is None:
        return 0.0
    return float(np.std(draws[first] - draws[second], ddof=1)) if len(draws[first]) else None


def summary_of(evaluation: Evaluation) -> dict[str, dict[str, float]]:
    """The means over seeds for DVC's displays, which have no setting for digits: three decimals, short names.

    Returns: method -> short name of each compared metric -> mean over seeds.
    """
    return {
        method: {SHORT.get(m, m): round(spreads[m]["mean"], 3) for m in COMPARED if m in spreads}
        for method, spreads in evaluation["methods"].items()
    }
