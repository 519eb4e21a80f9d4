"""Model cards with results: what stage `evaluate` knows of a method, in the words of its report."""

from rarlhf.config.methods import Method
from rarlhf.config.params import Params, Section
from rarlhf.evaluation.card import Base, Card
from rarlhf.evaluation.evaluate import COMPARED, Evaluation
from rarlhf.evaluation.findings import LABELS, UNLIKE_KL, pair_label
from rarlhf.evaluation.statistics import percent
from rarlhf.evaluation.tables import COLUMNS, difference_text, result_rows
from rarlhf.messages.markdown import table


def card_with_results(method: Method, base: Base, evaluation: Evaluation, params: Params) -> Card:
    """The card of a trained method, all its seeds, with its results beside those of the other methods.

    Args:
        method: one whose models this project trains.
        base: the base model, as the card in its folder tells.
        evaluation: content of metrics/evaluate.json.
        params: all parameters.
    """
    results = results_text(method.name, evaluation)
    return Card(method.name, None, base, params.data, params.model, _sections(method, params), params.preset, results)


def _sections(method: Method, params: Params) -> dict[str, Section]:
    if method.risk is None:
        return {"sft": params.sft}
    return {"ppo": params.ppo, "kl": params.kl, "risk": method.risk, "reward": params.reward}


def results_text(method: str, evaluation: Evaluation) -> str:
    """The results table, the method's paired differences, and what they were measured on, in Markdown."""
    test, confidence = evaluation["test"], percent(evaluation["confidence"])
    rows = result_rows(evaluation, list(COLUMNS))
    bold = [[f"**{cell}**" for cell in row] if row[0] == LABELS[method] else row for row in rows]
    differences = [
        [
            pair_label(c),
            *(difference_text(c["metrics"][metric]) for metric in COMPARED),
        ]
        for c in evaluation["comparisons"].values()
        if method in (c["first"], c["second"])
    ]
    headings = [COLUMNS[metric] for metric in COMPARED]
    parts = [
        f"On {test['prompts']} test prompts x {test['samples']} samples, seeds {_listed(evaluation['seeds'])}; "
        f"prompt tail: {test['tail_prompts']} prompts. Mean and half-width of the {confidence} t interval over seeds; "
        "rewards and tails: higher is better, perplexity: lower.",
        table(["method", *COLUMNS.values()], bold),
    ]
    if differences:
        parts += [
            f"Paired differences with their {confidence} intervals; what includes zero is not distinguishable.",
            table(["difference", *headings], differences),
            *([UNLIKE_KL] if any("†" in row[0] for row in differences) else []),
        ]
    return "\n\n".join(parts)


def _listed(seeds: list[int]) -> str:
    return ", ".join(str(seed) for seed in seeds)
