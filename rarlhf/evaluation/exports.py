"""The tables of results for other texts: Markdown for a pull request or a card, LaTeX (booktabs) for a paper."""

from collections.abc import Iterable, Sequence

from rarlhf.config.methods import RLHF, label_of
from rarlhf.config.params import EvaluateParams
from rarlhf.evaluation.comparisons import Comparison, Evaluation
from rarlhf.evaluation.findings import MARK, SIGN, best_methods, compared_with_rlhf, mark_explained, pair_label
from rarlhf.evaluation.names import COMPARED
from rarlhf.evaluation.statistics import distinguishable_over_seeds
from rarlhf.evaluation.tables import (
    COLUMNS,
    COST_COLUMNS,
    NONE,
    columns_of,
    cost_rows,
    difference_cells,
    difference_text,
    result_rows,
    tested_on,
    utility_columns,
    utility_notes,
)
from rarlhf.evaluation.words import listed, percent
from rarlhf.messages.markdown import table

_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "†": r"\textdagger{}", "–": "--",
}  # fmt: skip


def results_markdown(
    evaluation: Evaluation, params: EvaluateParams, pairs: Sequence[Comparison], method: str | None = None
) -> str:
    """The results table, paired differences, and what they were measured on, in Markdown.

    Args:
        evaluation: content of metrics/evaluate.json.
        params: section `evaluate`, for the meaning of `MARK`.
        pairs: whose differences are shown.
        method: whose row is bold, if any.
    """
    confidence = percent(evaluation["confidence"])
    columns = columns_of(evaluation)
    rows = result_rows(evaluation, list(columns))
    bold = [[f"**{cell}**" for cell in row] if method and row[0] == label_of(method) else row for row in rows]
    differences = [[pair_label(c), *difference_cells(c, COMPARED)] for c in pairs]
    parts = [
        f"Seeds {listed(evaluation['seeds'])}; {tested_on(evaluation)}. Mean and half-width of the {confidence} t "
        "interval over seeds; rewards and tails: higher is better, perplexity: lower.",
        table(["method", *columns.values()], bold),
    ]
    if method is None:
        parts += [
            "What each method costs. Passes are over a token of a response; draws and scores are for one answer.",
            table(["method", *COST_COLUMNS.values()], cost_rows(evaluation)),
            *_utility(evaluation),
        ]
    if differences:
        parts += [
            _about_differences(evaluation, "what includes zero is not distinguishable"),
            table(["difference", *(COLUMNS[metric] for metric in COMPARED)], differences),
            *([mark_explained(params)] if any(MARK in row[0] for row in differences) else []),
        ]
    return "\n\n".join(parts)


def _utility(evaluation: Evaluation) -> list[str]:
    """What models can still do, as a heading, a table and how to read it; nothing where nothing was measured."""
    columns = utility_columns(evaluation)
    if not columns:
        return []
    rows = result_rows(evaluation, list(columns))
    return ["**Utility**", table(["method", *columns.values()], rows), " ".join(utility_notes(evaluation))]


def _about_differences(evaluation: Evaluation, how_to_read: str) -> str:
    """What the table of differences has, and how to read its intervals where they speak of methods."""
    confidence = percent(evaluation["confidence"])
    if len(evaluation["seeds"]) == 1:
        return f"Differences of one seed: their {confidence} intervals contain the error of the test prompts alone."
    return f"Paired differences with their {confidence} intervals; {how_to_read}."


def markdown_table(evaluation: Evaluation, params: EvaluateParams) -> str:
    """The content of reports/table.md: all methods, and the differences to RLHF."""
    return results_markdown(evaluation, params, pairs_with_rlhf(evaluation)) + "\n"


def pairs_with_rlhf(evaluation: Evaluation) -> list[Comparison]:
    """Each trained method with RLHF; none where one of the two is missing."""
    found = (evaluation["comparisons"].get(f"{method}_minus_{RLHF}") for method in compared_with_rlhf(evaluation))
    return [pair for pair in found if pair is not None]


def latex_table(evaluation: Evaluation, params: EvaluateParams) -> str:
    """The content of reports/table.tex: two `tabular` environments of package booktabs, with a note for each.

    The first has the results, with `best_methods` in bold. The second has the differences to RLHF, with those that
    leave out zero in bold, none of one seed; it is missing where there are none.
    """
    confidence = percent(evaluation["confidence"])
    columns = columns_of(evaluation)
    best = {metric: best_methods(evaluation, metric) if metric in SIGN else [] for metric in columns}
    rows = [
        [_latex(row[0]), *(_cell(cell, method in best[m]) for cell, m in zip(row[1:], columns, strict=True))]
        for method, row in zip(evaluation["methods"], result_rows(evaluation, list(columns)), strict=True)
    ]
    differences = [[_latex(pair_label(pair)), *_differences(pair)] for pair in pairs_with_rlhf(evaluation)]
    about = f"preset {evaluation['preset']}; seeds {listed(evaluation['seeds'])}; {tested_on(evaluation)}"
    parts = [
        f"% Needs \\usepackage{{booktabs}}. {about}",
        f"% Mean and half-width of the {confidence} t interval over seeds; bold: ahead of every other method.",
        _tabular(["method", *columns.values()], rows),
    ]
    if differences:
        parts += [
            f"% {_about_differences(evaluation, 'bold: leaves out zero')}",
            f"% {mark_explained(params)}",
            _tabular(["difference", *(COLUMNS[metric] for metric in COMPARED)], differences),
        ]
    return "\n".join(parts) + "\n"


def _differences(pair: Comparison) -> list[str]:
    found = [pair["metrics"].get(metric) for metric in COMPARED]
    return [
        NONE if difference is None else _cell(difference_text(difference), distinguishable_over_seeds(difference))
        for difference in found
    ]


def _tabular(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [
        f"\\begin{{tabular}}{{l{'r' * (len(heading) - 1)}}}", "\\toprule", f"{' & '.join(map(_latex, heading))} \\\\",
        "\\midrule", *(f"{' & '.join(row)} \\\\" for row in rows), "\\bottomrule", "\\end{tabular}",
    ]  # fmt: skip
    return "\n".join(lines)


def _cell(text: str, bold: bool) -> str:
    """A number as LaTeX has it, with a minus for a hyphen before a digit."""
    shown = _latex(text)
    for sign in ("-", "+"):
        shown = "".join(
            f"${sign}$" if letter == sign and shown[place + 1 : place + 2].isdigit() else letter
            for place, letter in enumerate(shown)
        )
    return f"\\textbf{{{shown}}}" if bold else shown


def _latex(text: str) -> str:
    """A text whose letters LaTeX shows as they are."""
    return "".join(_LATEX.get(letter, letter) for letter in text)
