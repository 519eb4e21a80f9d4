"""The model cards of a run: one for each method that is trained, with its results."""

from pathlib import Path

from rarlhf.config.methods import label_of, methods_of
from rarlhf.config.params import EvaluateParams, Params
from rarlhf.evaluation.card import Card
from rarlhf.evaluation.comparisons import COMPARED, Evaluation
from rarlhf.evaluation.findings import MARK, mark_explained, pair_label
from rarlhf.evaluation.tables import COLUMNS, columns_of, difference_text, result_rows, tested_on
from rarlhf.evaluation.words import listed, percent
from rarlhf.messages.markdown import table


def write_cards(folder: Path, evaluation: Evaluation, params: Params) -> None:
    """Writes METHOD.md for every method but the base model, which the pipeline does not fine-tune."""
    for method in methods_of(params):
        if method.made_by != "base":
            text = Card(method, params, results_text(method.name, evaluation, params.evaluate)).text()
            (folder / f"{method.name}.md").write_text(text, encoding="utf-8", newline="\n")


def results_text(method: str, evaluation: Evaluation, params: EvaluateParams) -> str:
    """The results table, the method's paired differences, and what they were measured on, in Markdown."""
    confidence = percent(evaluation["confidence"])
    columns = columns_of(evaluation)
    rows = result_rows(evaluation, list(columns))
    bold = [[f"**{cell}**" for cell in row] if row[0] == label_of(method) else row for row in rows]
    differences = [
        [pair_label(c), *(difference_text(c["metrics"][metric]) for metric in COMPARED)]
        for c in evaluation["comparisons"].values()
        if method in (c["first"], c["second"])
    ]
    headings = [COLUMNS[metric] for metric in COMPARED]
    parts = [
        f"Seeds {listed(evaluation['seeds'])}; {tested_on(evaluation)}. Mean and half-width of the {confidence} t "
        "interval over seeds; rewards and tails: higher is better, perplexity: lower.",
        table(["method", *columns.values()], bold),
    ]
    if differences:
        parts += [
            f"Paired differences with their {confidence} intervals; what includes zero is not distinguishable.",
            table(["difference", *headings], differences),
            *([mark_explained(params)] if any(MARK in row[0] for row in differences) else []),
        ]
    return "\n\n".join(parts)
