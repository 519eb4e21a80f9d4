"""What a scorer that no training saw says of the gains by the reward model, in plain sentences.

Training can exploit the reward model: its score rises and the text gets no better. Where the reward model sees a gain
beyond the interval and the second scorer a loss beyond its own, the sentence says reward hacking.
"""

from collections.abc import Iterator

from rarlhf.config.methods import RLHF, in_order, is_trained, label_of
from rarlhf.evaluation.comparisons import Comparison, Evaluation
from rarlhf.evaluation.findings import METRIC_LABELS, Verdict, at_lower_kl, comparable, verdict
from rarlhf.evaluation.judged import SECOND
from rarlhf.evaluation.tables import difference_text
from rarlhf.evaluation.words import joined

START = "sft"


def second_opinions(evaluation: Evaluation) -> list[str]:
    """Sentences on each trained method's gains over SFT, then over RLHF: those that the report claims.

    Returns: nothing where there was no second scorer, or no gain to look at.
    """
    trained = [method for method in in_order(evaluation["methods"]) if is_trained(method)]
    pairs = [f"{method}_minus_{START}" for method in trained]
    pairs += [f"{method}_minus_{RLHF}" for method in trained if method != RLHF]
    found = (evaluation["comparisons"].get(pair) for pair in pairs)
    return [sentence for pair in found if pair is not None for sentence in _of_pair(evaluation, pair)]


def _of_pair(evaluation: Evaluation, comparison: Comparison) -> Iterator[str]:
    metrics = comparison["metrics"]
    if not set(SECOND) <= set(metrics):
        return
    gained = [second for second, first in SECOND.items() if _is_gain(evaluation, comparison, first)]
    by_verdict: dict[Verdict, list[str]] = {"better": [], "worse": [], "open": []}
    for second in gained:
        by_verdict[verdict(metrics[second], 1)].append(second)
    pair = f"{label_of(comparison['first'])} over {label_of(comparison['second'])}"
    if by_verdict["better"]:
        yield f"{pair}: the second scorer confirms the gain in {_listed(comparison, by_verdict['better'])}."
    if by_verdict["open"]:
        yield f"{pair}: the second scorer does not show the gain in {_listed(comparison, by_verdict['open'])}."
    if by_verdict["worse"]:
        yield (
            f"Reward hacking, {pair}: the reward model sees a gain, and the second scorer a loss, in "
            f"{_listed(comparison, by_verdict['worse'])}."
        )


def _is_gain(evaluation: Evaluation, comparison: Comparison, metric: str) -> bool:
    """Whether the report claims a gain of the first method: at like KL, or though its KL is lower."""
    claimed = comparable(comparison) or at_lower_kl(evaluation, comparison, metric) is not None
    return claimed and verdict(comparison["metrics"][metric], 1) == "better"


def _listed(comparison: Comparison, metrics: list[str]) -> str:
    found = comparison["metrics"]
    return joined(
        f"{METRIC_LABELS[SECOND[m]]} (reward model {difference_text(found[SECOND[m]])}; "
        f"second scorer {difference_text(found[m])})"
        for m in metrics
    )
