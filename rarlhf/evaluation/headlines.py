"""The first sentences of the report: whether each trained method's worst answers are better than RLHF's.

The worst answers are judged by the outcome CVaR at 10 %, at like KL alone, by the interval of the paired difference.
The prompt tail and the mean stand beside it, so that a gain is read with its price.
"""

from collections.abc import Mapping, Sequence

from rarlhf.config.methods import RLHF, label_of
from rarlhf.config.params import EvaluateParams
from rarlhf.evaluation.comparisons import Comparison, Evaluation
from rarlhf.evaluation.findings import Verdict, at_lower_kl, comparable, compared_with_rlhf, verdict
from rarlhf.evaluation.statistics import seeds_at_unlike_kl
from rarlhf.evaluation.tables import difference_text
from rarlhf.evaluation.words import counted, joined

JUDGED = "reward_cvar_10"
NUMBERS: Mapping[str, str] = {JUDGED: "CVaR 10 %", "reward_prompt_tail": "prompt tail", "reward_mean": "mean reward"}
WORDS: Mapping[Verdict, str] = {"better": "better than", "worse": "worse than", "open": "not distinguishable from"}
TAILS = ("reward_prompt_tail", JUDGED)
ASIDE: Mapping[Verdict, str] = {"better": "better", "worse": "worse", "open": "not distinguishable"}
ORDER = ("better", "worse", "lower_kl", "open", "unlike_kl")  # what says most comes first


def headlines(evaluation: Evaluation, params: EvaluateParams) -> list[str]:
    """Whether the worst answers of each trained method are better than RLHF's, as far as this run can tell.

    Args:
        evaluation: content of metrics/evaluate.json.
        params: section `evaluate`, of which `like_kl` is read.

    Returns: a sentence for each such method, those with a verdict first, or one sentence where nothing can be said of
        any. A method that is ahead at a lower KL has a further sentence for each tail that is.
    """
    others = compared_with_rlhf(evaluation)
    if not others or RLHF not in evaluation["methods"]:
        return [_nothing_compared(evaluation, others)]
    if len(evaluation["seeds"]) < 2:
        names = joined(label_of(method) for method in others)
        alone = "One seed: intervals speak of the test prompts alone"
        return [f"{alone}, so nothing is concluded about {names} against {label_of(RLHF)}."]
    pairs = (evaluation["comparisons"][f"{method}_minus_{RLHF}"] for method in others)
    told = [_at_like_kl(pair) if comparable(pair) else _at_unlike_kl(evaluation, pair, params) for pair in pairs]
    return [sentence for _, sentence in sorted(told, key=lambda one: ORDER.index(one[0]))]


def _nothing_compared(evaluation: Evaluation, others: Sequence[str]) -> str:
    rlhf = label_of(RLHF)
    if others:
        names = joined(label_of(method) for method in others)
        return f"{rlhf} was not run, so the tails of {names} have nothing to be compared with."
    if RLHF in evaluation["methods"]:
        return f"{rlhf} is the only trained method, so its tail is not compared."
    return "No method was trained, so no tails are compared."


def _at_like_kl(comparison: Comparison) -> tuple[str, str]:
    """The verdict, as `ORDER` has it, and its sentence."""
    first, second = label_of(comparison["first"]), label_of(comparison["second"])
    verdicts = {metric: verdict(comparison["metrics"][metric], 1) for metric in NUMBERS}
    judged = verdicts[JUDGED]
    numbers = (
        f"{name} {difference_text(comparison['metrics'][metric])}"
        + ("" if verdicts[metric] == judged else f" ({ASIDE[verdicts[metric]]})")
        for metric, name in NUMBERS.items()
    )
    return judged, f"{first}'s worst answers are {WORDS[judged]} {second}'s at like KL: {', '.join(numbers)}."


def _at_unlike_kl(evaluation: Evaluation, comparison: Comparison, params: EvaluateParams) -> tuple[str, str]:
    first, second = (
        (label_of(name), evaluation["methods"][name]["kl_sft"]["mean"])
        for name in (comparison["first"], comparison["second"])
    )
    difference, target = comparison["metrics"]["kl_sft"], evaluation["kl_target"]
    seeds = f"{seeds_at_unlike_kl(difference, target, params)} of {counted(difference['n'], 'seed')}"
    sentence = (
        f"{second[0]} ended at KL {second[1]:.2f} nats and {first[0]} at {first[1]:.2f}, more than "
        f"{params.like_kl * target:g} apart in {seeds}: their rewards are not directly comparable."
    )
    ahead = [said for metric in TAILS if (said := at_lower_kl(evaluation, comparison, metric))]
    return ("lower_kl" if ahead else "unlike_kl"), " ".join([sentence, *ahead])
