"""The model cards of a run: one for each method that is trained, with its results."""

from pathlib import Path

from rarlhf.config.methods import methods_of
from rarlhf.config.params import EvaluateParams, Params
from rarlhf.evaluation.card import Card
from rarlhf.evaluation.comparisons import Evaluation
from rarlhf.evaluation.exports import results_markdown


def write_cards(folder: Path, evaluation: Evaluation, params: Params) -> None:
    """Writes METHOD.md for every method with a model that the pipeline trains; not for the base model and rules."""
    for method in methods_of(params):
        if method.made_by != "base" and method.has_model:
            text = Card(method, params, results_text(method.name, evaluation, params.evaluate)).text()
            (folder / f"{method.name}.md").write_text(text, encoding="utf-8", newline="\n")


def results_text(method: str, evaluation: Evaluation, params: EvaluateParams) -> str:
    """The results table, the method's paired differences, and what they were measured on, in Markdown."""
    pairs = [c for c in evaluation["comparisons"].values() if method in (c["first"], c["second"])]
    return results_markdown(evaluation, params, pairs, method)
