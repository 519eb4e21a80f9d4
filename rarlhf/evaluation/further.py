"""Metrics that other stages measured, among those of metrics/evaluate.json: utility, and the win rate."""

from collections.abc import Mapping

import numpy as np

from rarlhf.evaluation.comparisons import Evaluation, Preference, PreferenceOf
from rarlhf.evaluation.generations import FloatArray
from rarlhf.evaluation.preference import LOSS, TIE, WIN, Preferences
from rarlhf.evaluation.statistics import Spread, over_seeds, t_half_width
from rarlhf.utility.results import Utility

WIN_RATE = "win_rate"


def with_utility(evaluation: Evaluation, utility: Mapping[str, Mapping[int, Utility]]) -> Evaluation:
    """The evaluation with what stage `utility` measured; as it is where that is nothing.

    Args:
        evaluation: of the same methods and seeds.
        utility: method -> seed -> utility.
    """
    if not utility:
        return evaluation
    found = {}
    for method, by_seed in utility.items():
        measured = [of_seed.metrics for of_seed in by_seed.values()]
        names = [name for name in measured[0] if all(name in values for values in measured)]
        found[method] = {name: over_seeds([values[name] for values in measured]) for name in names}
    return _with(evaluation, found)


def with_preferences(evaluation: Evaluation, preferences: Preferences | None) -> Evaluation:
    """The evaluation with the win rates, and section `preference`; as it is where no judge compared answers.

    Args:
        evaluation: of the same methods and seeds.
        preferences: of the judge.
    """
    if preferences is None:
        return evaluation
    confidence = evaluation["confidence"]
    rates: dict[str, dict[str, Spread]] = {}
    details: dict[str, PreferenceOf] = {}
    for method, by_seed in preferences.verdicts.items():
        verdicts = np.stack([by_seed[seed] for seed in evaluation["seeds"]])
        rates[method] = {WIN_RATE: over_seeds(verdicts.mean(axis=1).tolist())}
        details[method] = PreferenceOf(
            wins=int((verdicts == WIN).sum()),
            losses=int((verdicts == LOSS).sum()),
            ties=int((verdicts == TIE).sum()),
            interval=over_prompts(verdicts, confidence),
        )
    section = Preference(against=preferences.against, prompts=len(preferences.prompt_ids), methods=details)
    return {**_with(evaluation, rates), "preference": section}


def over_prompts(verdicts: FloatArray, confidence: float) -> list[float] | None:
    """Student t interval of the win rate from the choice of prompts, within [0, 1].

    Args:
        verdicts: (S, P') wins, ties and losses as 1, 0.5 and 0.
        confidence: in (0, 1).

    Returns: of the mean over seeds and prompts; None for a single prompt.
    """
    each = verdicts.mean(axis=0)
    half = t_half_width(each.tolist(), confidence)
    if half is None:
        return None
    mean = float(each.mean())
    return [max(mean - half, 0.0), min(mean + half, 1.0)]


def _with(evaluation: Evaluation, found: Mapping[str, Mapping[str, Spread]]) -> Evaluation:
    methods = {name: {**spreads, **found.get(name, {})} for name, spreads in evaluation["methods"].items()}
    return {**evaluation, "methods": methods}
