"""The results as text: numbers formatted once, for the terminal and for the report."""

from collections.abc import Mapping, Sequence

from rarlhf.evaluation.evaluate import Evaluation
from rarlhf.evaluation.findings import LABELS, SIGN, best_methods, unlike_kl
from rarlhf.evaluation.statistics import Difference, Spread, percent, t_half_width

COLUMNS: Mapping[str, str] = {  # metric -> short heading, in the order of the results table
    "reward_mean": "reward",
    "reward_prompt_tail": "prompt tail",
    "reward_cvar_10": "CVaR 10 %",
    "kl_sft": "KL, nats",
    "perplexity_reference": "perplexity",
}
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


def result_rows(evaluation: Evaluation, columns: Sequence[str]) -> list[list[str]]:
    """One row per method: its name, then `mean ±half-width` of each metric."""
    return [
        [LABELS[method], *(with_half_width(spreads[column], evaluation["confidence"]) for column in columns)]
        for method, spreads in evaluation["methods"].items()
    ]


def terminal_table(evaluation: Evaluation) -> str:
    """The results table for a terminal, at most 100 columns wide, with what it was measured on and how to read it."""
    test, confidence = evaluation["test"], evaluation["confidence"]
    title = (
        f"{evaluation['preset']}: {len(evaluation['seeds'])} seeds, {test['prompts']} test prompts x "
        f"{test['samples']} samples; prompt tail: {test['tail_prompts']} prompts"
    )
    plain = [[number(spreads[m]["mean"]) for m in PLAIN_COLUMNS] for spreads in evaluation["methods"].values()]
    rows = [row + extra for row, extra in zip(result_rows(evaluation, list(COLUMNS)), plain, strict=True)]
    table = aligned([["method", *COLUMNS.values(), *PLAIN_COLUMNS.values()], *rows])
    notes = f"mean ± half-width of the {percent(confidence)} t interval over seeds; reward, tails: higher is better"
    best = [f"{LABELS[m]} on {COLUMNS[metric]}" for metric in SIGN for m in best_methods(evaluation, metric)]
    ahead = f"ahead of every other method beyond the intervals: {', '.join(best) or 'none'}"
    unlike = unlike_kl(evaluation)
    return "\n".join([title, "", table, "", notes, ahead, *([unlike] if unlike else [])])


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as lines of equal width: names to the left, numbers to the right, a rule under the heading."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])
