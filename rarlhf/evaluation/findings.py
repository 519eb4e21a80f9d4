"""What the intervals say, in plain sentences.

A difference counts only if its interval leaves out zero, and between two methods trained by PPO only at like KL
(`statistics.like_kl`), because reward can be bought with KL. SFT and the base model are where training starts from, so
that a trained method is never at like KL with them.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from rarlhf.evaluation.evaluate import Comparison, Evaluation
from rarlhf.evaluation.statistics import (
    LIKE_KL,
    LIKE_KL_CONFIDENCE,
    Difference,
    distinguishable,
    percent,
    seeds_at_unlike_kl,
)

LABELS: Mapping[str, str] = {"base": "Base", "sft": "SFT", "rlhf": "RLHF", "ra_rlhf": "RA-RLHF"}
METRIC_LABELS: Mapping[str, str] = {
    "reward_mean": "mean reward",
    "reward_prompt_tail": "prompt-tail reward",
    "reward_cvar_10": "outcome CVaR at 10 %",
    "kl_sft": "KL to SFT",
    "perplexity_reference": "reference perplexity",
}
SIGN: Mapping[str, int] = {  # 1: higher is better; -1: lower is better; KL is a budget, neither good nor bad
    "reward_mean": 1,
    "reward_prompt_tail": 1,
    "reward_cvar_10": 1,
    "perplexity_reference": -1,
}
REWARDS = ("reward_mean", "reward_prompt_tail", "reward_cvar_10")
TAILS = ("reward_prompt_tail", "reward_cvar_10")
TRAINED = ("rlhf", "ra_rlhf")  # by PPO, with kl.target
KL_LIMIT = 1.5  # times kl.target; above it the controller did not hold its target
UNLIKE_KL = (  # what the mark says, in the report, in cards and under an ablation's table
    f"† not at like KL: the KL of the two differs by more than {percent(LIKE_KL)} of the target in at least one seed, "
    f"and the {percent(LIKE_KL_CONFIDENCE)} interval of the difference reaches beyond that too. Reward can be bought "
    "with KL, so these differences in reward do not show by themselves which method is better."
)

Verdict = Literal["better", "worse", "open"]
WORDS: Mapping[Verdict, str] = {
    "better": "ahead of RLHF on",
    "worse": "behind RLHF on",
    "open": "not distinguishable from RLHF on",
}


def verdict(difference: Difference, sign: int) -> Verdict:
    """Whether the first method is better, worse, or not distinguishable (`open`), for a metric of that sign."""
    if not distinguishable(difference["interval"]):
        return "open"
    return "better" if difference["mean"] * sign > 0 else "worse"


def comparable(comparison: Comparison) -> bool:
    """Whether the rewards of two methods may say which is better: at like KL, or where one is a start of training."""
    return comparison["like_kl"] or not {comparison["first"], comparison["second"]} <= set(TRAINED)


def best_methods(evaluation: Evaluation, metric: str) -> list[str]:
    """The method whose comparisons with every other method are all comparable and decided for it; none in most tables.

    Returns: one method or none.
    """
    return [m for m in evaluation["methods"] if len(evaluation["methods"]) > 1 and _beats_all(evaluation, m, metric)]


def _beats_all(evaluation: Evaluation, method: str, metric: str) -> bool:
    for comparison in evaluation["comparisons"].values():
        if method not in (comparison["first"], comparison["second"]):
            continue
        wanted = "better" if method == comparison["first"] else "worse"
        if not comparable(comparison) or verdict(comparison["metrics"][metric], SIGN[metric]) != wanted:
            return False
    return True


def findings(evaluation: Evaluation) -> list[str]:
    """Sentences on RA-RLHF against RLHF, each against SFT, and on their KL; in reading order."""
    pairs = ("ra_rlhf_minus_rlhf", "rlhf_minus_sft", "ra_rlhf_minus_sft")
    sentences: list[str] = []
    for pair in pairs:
        if pair in evaluation["comparisons"]:
            sentences += _sentences(evaluation, evaluation["comparisons"][pair])
    return sentences + list(_kl_warnings(evaluation))


def headline(evaluation: Evaluation) -> str:
    """One or two sentences: does RA-RLHF's tail beat RLHF's, as far as this run can tell."""
    comparison = evaluation["comparisons"].get("ra_rlhf_minus_rlhf")
    if comparison is None:
        return "RLHF and RA-RLHF were not both run, so their tails are not compared."
    if len(evaluation["seeds"]) < 2:
        return "One seed: no intervals, so nothing is concluded about RA-RLHF against RLHF."
    if not comparable(comparison):
        return f"{_unlike(evaluation, comparison)}, so this run does not show which has the better tail."
    by_verdict: dict[Verdict, list[str]] = {"better": [], "worse": [], "open": []}
    for metric in TAILS:
        by_verdict[verdict(comparison["metrics"][metric], 1)].append(METRIC_LABELS[metric])
    parts = [f"{WORDS[value]} {' and '.join(labels)}" for value, labels in by_verdict.items() if labels]
    lead = "RA-RLHF" if by_verdict["better"] else "RA-RLHF does not win here: it"
    return f"{lead} is {'; '.join(parts)}."


def unlike_kl(evaluation: Evaluation) -> str | None:
    """A line that says that RA-RLHF and RLHF are not at like KL; None where they are, or were not both run."""
    comparison = evaluation["comparisons"].get("ra_rlhf_minus_rlhf")
    return None if comparison is None or comparable(comparison) else _unlike(evaluation, comparison)


def _unlike(evaluation: Evaluation, comparison: Comparison) -> str:
    difference, target = comparison["metrics"]["kl_sft"], evaluation["kl_target"]
    seeds = f"{seeds_at_unlike_kl(difference, target)} of {difference['n']} seeds"
    pair = f"{LABELS[comparison['first']]} and {LABELS[comparison['second']]}"
    return f"{pair} are not at like KL (more than {LIKE_KL * target:g} nats apart in {seeds})"


def pair_label(comparison: Comparison) -> str:
    """`RA-RLHF - RLHF`, with the mark that `UNLIKE_KL` explains where it is due."""
    mark = "" if comparison["like_kl"] else " †"
    return f"{LABELS[comparison['first']]} - {LABELS[comparison['second']]}{mark}"


def _sentences(evaluation: Evaluation, comparison: Comparison) -> Iterator[str]:
    first, second = LABELS[comparison["first"]], LABELS[comparison["second"]]
    if comparison["second"] in TRAINED:
        yield _kl_sentence(evaluation, comparison)
    for metric in REWARDS:
        say = _sentence if comparable(comparison) else _bare_difference
        yield say(first, second, METRIC_LABELS[metric], comparison["metrics"][metric])


def _sentence(first: str, second: str, label: str, difference: Difference) -> str:
    if difference["interval"] is None:
        return f"{first} and {second}, {label}: difference {difference['mean']:+.2f}, no interval."
    low, high = difference["interval"]
    mean = difference["mean"]
    if not distinguishable(difference["interval"]):
        return f"{first} and {second}, {label}: not distinguishable (difference {mean:+.2f} [{low:.2f}, {high:.2f}])."
    word, bounds = ("higher", (low, high)) if mean > 0 else ("lower", (-high, -low))
    return f"{first}'s {label} is {word} than {second}'s by {abs(mean):.2f} [{bounds[0]:.2f}, {bounds[1]:.2f}]."


def _bare_difference(first: str, second: str, label: str, difference: Difference) -> str:
    """The number without a verdict."""
    interval = difference["interval"]
    shown = "no interval" if interval is None else f"[{interval[0]:.2f}, {interval[1]:.2f}]"
    return f"{first} less {second}, {label}, not at like KL: {difference['mean']:+.2f}, {shown}."


def _kl_sentence(evaluation: Evaluation, comparison: Comparison) -> str:
    methods, target = (comparison["first"], comparison["second"]), evaluation["kl_target"]
    pair = " and ".join(LABELS[method] for method in methods)
    listed = (f"{LABELS[method]} {_listed(evaluation['methods'][method]['kl_sft']['per_seed'])}" for method in methods)
    seen = f"By seed, in nats: {', '.join(listed)}; target {target:g}."
    if not comparison["like_kl"]:
        return (
            f"{_unlike(evaluation, comparison)}. {seen} Their rewards may differ because of how far each moved from "
            "SFT, so they do not show which method is better."
        )
    if seeds_at_unlike_kl(comparison["metrics"]["kl_sft"], target):
        return f"{pair} are at like KL by the {percent(LIKE_KL_CONFIDENCE)} interval of their difference. {seen}"
    return f"{pair} are at like KL in every seed. {seen}"


def _kl_warnings(evaluation: Evaluation) -> Iterator[str]:
    limit = KL_LIMIT * evaluation["kl_target"]
    for method in TRAINED:
        if method in evaluation["methods"]:
            per_seed = evaluation["methods"][method]["kl_sft"]["per_seed"]
            above = sum(kl > limit for kl in per_seed)
            if above:
                yield (
                    f"{LABELS[method]}'s KL is more than {KL_LIMIT:g} times its target of {evaluation['kl_target']:g} "
                    f"nats in {above} of {len(per_seed)} seeds (by seed: {_listed(per_seed)})."
                )


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.2f}" for value in values)
