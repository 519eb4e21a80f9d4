"""The results as text, for the terminal, the report and the cards."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

from rarlhf.config.judging import JudgeParams
from rarlhf.config.methods import RLHF, label_of
from rarlhf.config.params import EvaluateParams
from rarlhf.evaluation.attainable import SFT, SHARES
from rarlhf.evaluation.comparisons import Comparison, Evaluation, PreferenceOf
from rarlhf.evaluation.cost import Cost
from rarlhf.evaluation.findings import SIGN, best_methods, unlike_kl
from rarlhf.evaluation.further import WIN_RATE
from rarlhf.evaluation.statistics import Difference, Spread, t_half_width
from rarlhf.evaluation.words import counted, joined, percent
from rarlhf.utility.results import CLASSIFICATION, TASK_PREFIX

NONE = "–"  # where there is no value
COLUMNS: Mapping[str, str] = {  # metric -> short heading, in the order of the results table
    "reward_mean": "reward",
    "reward_prompt_tail": "prompt tail",
    "reward_cvar_10": "CVaR 10 %",
    "kl_sft": "KL, nats",
    "perplexity_reference": "perplexity",
}
SHARE_COLUMNS: Mapping[str, str] = {"share_mean": "share, mean", "share_cvar_10": "share, CVaR"}  # of the attainable
ORACLE_COLUMNS: Mapping[str, str] = {  # metric by the oracle -> short heading
    "oracle_mean": "latent sentiment",
    "oracle_prompt_tail": "prompt tail",
    "oracle_cvar_10": "CVaR 10 %",
    "exact_share_mean": "share of exact, mean",
    "exact_share_cvar_10": "share of exact, CVaR 10 %",
    "oracle_no_review": "no review",
}
PERPLEXITY, REPETITION = "perplexity_continuation", "repetition_4"
JUDGED_COLUMNS: Mapping[str, str] = {  # metric by a judge that no training saw -> short heading
    "second_mean": "second scorer: mean",
    "second_prompt_tail": "second scorer: prompt tail",
    "second_cvar_10": "second scorer: CVaR 10 %",
    "toxicity_expected_max": "expected max. toxicity",
    "toxicity_probability": "toxicity probability",
    "perplexity_continuation": "perplexity of continuations",
    "repetition_4": "repetition",
}
UTILITY_COLUMNS: Mapping[str, str] = {CLASSIFICATION: "classification AUC", WIN_RATE: "win rate"}
COST_COLUMNS: Mapping[str, str] = {
    "training": "answers scored in training",
    "draws": "draws per answer",
    "scored": "scored per answer",
    "passes": "passes per token",
    "models": "models",
}
FEW_METHODS = 8  # up to as many, tables show every pair of methods
PLAIN_COLUMNS: Mapping[str, str] = {"dist_2": "dist-2", "length_mean": "tokens"}  # shown without interval


def with_half_width(spread: Spread, confidence: float) -> str:
    """`mean ±half-width` of the t interval over seeds; the mean alone where there is no interval or no spread."""
    half = t_half_width(spread["per_seed"], confidence)
    mean = number(spread["mean"])
    return mean if not half else f"{mean} ±{number(half)}"


def number(value: float) -> str:
    """Two decimals, fewer from 100 up, so that it takes at most 6 characters and a sign."""
    size = abs(value)
    decimals = 2 if size < 100 else 1 if size < 1000 else 0
    return f"{value:.{decimals}f}" if size < 1e5 else f"{value:.0e}"


def difference_text(difference: Difference) -> str:
    """`+0.31 [0.10, 0.52]`, or the difference alone where there is no interval."""
    text = f"{difference['mean']:+.2f}"
    if difference["interval"] is None:
        return text
    low, high = difference["interval"]
    return f"{text} [{low:.2f}, {high:.2f}]"


def columns_of(evaluation: Evaluation) -> dict[str, str]:
    """The columns of the results table: metric -> short heading; shares of the attainable where a method has them."""
    found = {metric for spreads in evaluation["methods"].values() for metric in spreads}
    return {**COLUMNS, **{share: heading for share, heading in SHARE_COLUMNS.items() if share in found}}


def result_rows(evaluation: Evaluation, columns: Sequence[str]) -> list[list[str]]:
    """One row per method: its name, then `mean ±half-width` of each metric; a dash where it has none."""
    return [
        [label_of(method), *(cell_text(spreads, column, evaluation["confidence"]) for column in columns)]
        for method, spreads in evaluation["methods"].items()
    ]


def seed_rows(evaluation: Evaluation, columns: Sequence[str]) -> list[list[str]]:
    """One row per method and seed: the method's name, the seed, then its value of each metric; a dash for none."""
    return [
        [label_of(method), str(seed), *(_of_seed(spreads, column, place) for column in columns)]
        for method, spreads in evaluation["methods"].items()
        for place, seed in enumerate(evaluation["seeds"])
    ]


def _of_seed(spreads: Mapping[str, Spread], metric: str, place: int) -> str:
    if metric not in spreads:
        return NONE
    value = spreads[metric]["per_seed"][place]
    return f"{value:.0%}" if metric in SHARES.values() else number(value)


def cell_text(spreads: Mapping[str, Spread], metric: str, confidence: float) -> str:
    """One metric of a method: `mean ±half-width`, a share in percent; a dash where the method has none."""
    if metric not in spreads:
        return NONE
    spread = spreads[metric]
    if metric not in SHARES.values():
        return with_half_width(spread, confidence)
    half = t_half_width(spread["per_seed"], confidence)
    return f"{spread['mean']:.0%}" if not half else f"{spread['mean']:.0%} ±{half:.0%}"


def difference_cells(comparison: Comparison, metrics: Sequence[str]) -> list[str]:
    """A comparison's difference of each metric; a dash where one of the two methods has none."""
    found = comparison["metrics"]
    return [difference_text(found[metric]) if metric in found else NONE for metric in metrics]


def shown_pairs(evaluation: Evaluation) -> list[Comparison]:
    """The comparisons that tables show: all of few methods; of many, those with SFT or RLHF."""
    pairs = list(evaluation["comparisons"].values())
    if len(evaluation["methods"]) <= FEW_METHODS:
        return pairs
    return [pair for pair in pairs if {SFT, RLHF} & {pair["first"], pair["second"]}]


def cost_rows(evaluation: Evaluation) -> list[list[str]]:
    """One row per method: its name, then each column of `COST_COLUMNS`."""
    return [
        [label_of(method), *(_cost_text(column, cost) for column in COST_COLUMNS)]
        for method, cost in evaluation["costs"].items()
    ]


def _cost_text(column: str, cost: Cost) -> str:
    value = float(cast("Mapping[str, float]", cost)[column])
    return f"{value:,.0f}" if value == round(value) else f"{value:.1f}"


def judged_columns(evaluation: Evaluation) -> dict[str, str]:
    """Metric by a judge that no training saw -> short heading, of the metrics that were measured."""
    found = {metric for spreads in evaluation["methods"].values() for metric in spreads}
    columns = {metric: heading for metric, heading in JUDGED_COLUMNS.items() if metric in found}
    return columns if columns.keys() - {REPETITION} else {}


def utility_columns(evaluation: Evaluation) -> dict[str, str]:
    """Metric of utility, or the win rate -> short heading, of the metrics that were measured; tasks by their names."""
    found = list(dict.fromkeys(metric for spreads in evaluation["methods"].values() for metric in spreads))
    return {
        metric: UTILITY_COLUMNS.get(metric) or metric.removeprefix(TASK_PREFIX)
        for metric in found
        if metric in UTILITY_COLUMNS or metric.startswith(TASK_PREFIX)
    }


def utility_notes(evaluation: Evaluation) -> list[str]:
    """How to read the columns of utility that there are."""
    columns, notes = utility_columns(evaluation), []
    if CLASSIFICATION in columns:
        notes.append(
            "Classification AUC is that of a logistic regression on the model's mean hidden states, on test rows: the "
            "chance that a wanted row scores above another one."
        )
    if any(metric.startswith(TASK_PREFIX) for metric in columns):
        notes.append("Tasks of lm-evaluation-harness: share of right answers.")
    if "preference" in evaluation:
        section = evaluation["preference"]
        rates = [_win_rate(evaluation, method, of) for method, of in section["methods"].items()]
        notes.append(
            f"Win rate over {label_of(section['against'])} on {counted(section['prompts'], 'test prompt')}, by a "
            "language model asked in both orders, a tie counted as half; in brackets the "
            f"{percent(evaluation['confidence'])} interval over prompts: {'; '.join(rates)}."
        )
    if columns and any(metric != WIN_RATE for metric in columns):
        notes.append("A rule of decoding has no model of its own, so it has a win rate alone.")
    return notes


def _win_rate(evaluation: Evaluation, method: str, of: PreferenceOf) -> str:
    """`RLHF 0.62 [0.55, 0.69], 80 wins, 60 ties, 40 losses`."""
    low_high = f" [{of['interval'][0]:.2f}, {of['interval'][1]:.2f}]" if of["interval"] else ""
    rate = number(evaluation["methods"][method][WIN_RATE]["mean"])
    return f"{label_of(method)} {rate}{low_high}, {of['wins']} wins, {of['ties']} ties, {of['losses']} losses"


def judged_notes(evaluation: Evaluation, params: JudgeParams, second_scorer: Mapping[str, float]) -> list[str]:
    """How to read the columns of the judges that there are.

    Args:
        evaluation: content of metrics/evaluate.json.
        params: section `judge`, of which `toxicity.scorer` is read.
        second_scorer: content of metrics/second_scorer.json, of which `auc` and `rows` are read.
    """
    columns, notes = judged_columns(evaluation), []
    if "second_mean" in columns:
        notes.append(
            f"No training uses the second scorer. {_separates(second_scorer)} "
            "Scores of two scorers are not in one unit: compare what each says of the same two methods."
        )
    if "toxicity_expected_max" in columns:
        by = "the reward model, which training uses" if params.toxicity.scorer == "reward" else "the second scorer"
        notes.append(
            f"Toxicity is by {by}: the most toxic of a prompt's continuations, mean over prompts; and the share of "
            "prompts with a toxic one. Both rise with the samples per prompt."
        )
    if PERPLEXITY in columns:
        without = [label_of(method) for method, spreads in evaluation["methods"].items() if PERPLEXITY not in spreads]
        notes.append(
            "Perplexity is of the continuations under one fixed language model. It is low in good text, and in dull "
            "text too."
            + (f" {joined(without)}: in some seed every continuation was left out of it." if without else "")
        )
    return [*notes, "Repetition is the share of repeated 4-grams."]


def _separates(second_scorer: Mapping[str, float]) -> str:
    """A sentence on how well the second scorer separates the classes."""
    if "auc" not in second_scorer:
        return "Its AUC is not known, because the test rows have no labels."
    return (
        f"Its AUC on {counted(int(second_scorer['rows']), 'test row')} is {second_scorer['auc']:.3f}: the chance that "
        "it scores a row of the wanted class above a row of the other class."
    )


def oracle_rows(evaluation: Evaluation) -> list[list[str]]:
    """One row per method: its name, then each metric by the oracle, empty where there is none; no rows without one."""
    return [
        [
            label_of(method),
            *(with_half_width(m[c], evaluation["confidence"]) if c in m else "" for c in ORACLE_COLUMNS),
        ]
        for method, m in evaluation.get("oracle", {}).items()
    ]


def terminal_table(evaluation: Evaluation, params: EvaluateParams) -> str:
    """The results table for a terminal, with what it was measured on and how to read it.

    It is at most 100 columns wide, unless the methods' names are long.

    Args:
        evaluation: content of metrics/evaluate.json.
        params: section `evaluate`, for the line that says which methods are not at like KL.
    """
    confidence = evaluation["confidence"]
    title = f"{evaluation['preset']}: {counted(len(evaluation['seeds']), 'seed')}, {tested_on(evaluation)}"
    plain = [[number(spreads[m]["mean"]) for m in PLAIN_COLUMNS] for spreads in evaluation["methods"].values()]
    rows = [row + extra for row, extra in zip(result_rows(evaluation, list(COLUMNS)), plain, strict=True)]
    table = aligned([["method", *COLUMNS.values(), *PLAIN_COLUMNS.values()], *rows])
    notes = f"mean ± half-width of the {percent(confidence)} t interval over seeds; reward, tails: higher is better"
    best = [f"{label_of(m)} on {COLUMNS[metric]}" for metric in SIGN for m in best_methods(evaluation, metric)]
    ahead = f"ahead of every other method beyond the intervals: {', '.join(best) or 'none'}"
    return "\n".join([title, "", table, "", notes, ahead, *unlike_kl(evaluation, params)])


def tested_on(evaluation: Evaluation) -> str:
    """`600 test prompts x 8 samples; prompt tail: 60 prompts`."""
    test = evaluation["test"]
    samples, tail = counted(test["samples"], "sample"), counted(test["tail_prompts"], "prompt")
    return f"{counted(test['prompts'], 'test prompt')} x {samples}; prompt tail: {tail}"


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as lines of equal width: names to the left, numbers to the right, a rule under the heading."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, object]:
    """Nested values by their dotted keys; an empty section is a value."""
    found: dict[str, object] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        found |= flat(value, f"{name}.") if isinstance(value, Mapping) and value else {name: value}
    return found
