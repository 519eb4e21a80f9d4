"""What the intervals say, in plain sentences. A difference counts only if its interval leaves out zero."""

from collections.abc import Iterator, Mapping
from typing import Literal

from rarlhf.evaluation.evaluate import Comparison, Evaluation
from rarlhf.evaluation.statistics import Difference, distinguishable

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
KL_LIMIT = 1.5  # times kl.target; above it the controller did not hold its target

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


def best_methods(evaluation: Evaluation, metric: str) -> list[str]:
    """The method whose intervals against every other method are all on its side; none in most tables.

    Returns: one method or none.
    """
    return [m for m in evaluation["methods"] if len(evaluation["methods"]) > 1 and _beats_all(evaluation, m, metric)]


def _beats_all(evaluation: Evaluation, method: str, metric: str) -> bool:
    for comparison in evaluation["comparisons"].values():
        if method not in (comparison["first"], comparison["second"]):
            continue
        wanted = "better" if method == comparison["first"] else "worse"
        if verdict(comparison["metrics"][metric], SIGN[metric]) != wanted:
            return False
    return True


def findings(evaluation: Evaluation) -> list[str]:
    """Sentences on RA-RLHF against RLHF, each against SFT, and on the KL they stand at; in reading order."""
    pairs = ("ra_rlhf_minus_rlhf", "rlhf_minus_sft", "ra_rlhf_minus_sft")
    sentences: list[str] = []
    for pair in pairs:
        if pair in evaluation["comparisons"]:
            sentences += _sentences(evaluation["comparisons"][pair])
    return sentences + list(_kl_warnings(evaluation))


def headline(evaluation: Evaluation) -> str:
    """One or two sentences: does RA-RLHF's tail beat RLHF's, as far as this run can tell."""
    comparison = evaluation["comparisons"].get("ra_rlhf_minus_rlhf")
    if comparison is None:
        return "RLHF and RA-RLHF were not both run, so their tails are not compared."
    if len(evaluation["seeds"]) < 2:
        return "One seed: no intervals, so nothing is concluded about RA-RLHF against RLHF."
    by_verdict: dict[Verdict, list[str]] = {"better": [], "worse": [], "open": []}
    for metric in TAILS:
        by_verdict[verdict(comparison["metrics"][metric], 1)].append(METRIC_LABELS[metric])
    parts = [f"{WORDS[value]} {' and '.join(labels)}" for value, labels in by_verdict.items() if labels]
    lead = "RA-RLHF" if by_verdict["better"] else "RA-RLHF does not win here: it"
    unlike = "" if comparison["like_kl"] else " The two stand at unlike KL."
    return f"{lead} is {'; '.join(parts)}.{unlike}"


def _sentences(comparison: Comparison) -> Iterator[str]:
    first, second = LABELS[comparison["first"]], LABELS[comparison["second"]]
    for metric in REWARDS:
        yield _sentence(first, second, METRIC_LABELS[metric], comparison["metrics"][metric])
    if comparison["second"] != "sft":
        yield _kl_sentence(first, second, comparison)


def _sentence(first: str, second: str, label: str, difference: Difference) -> str:
    if difference["interval"] is None:
        return f"{first} and {second}, {label}: difference {difference['mean']:+.2f}, no interval."
    low, high = difference["interval"]
    mean = difference["mean"]
    if not distinguishable(difference["interval"]):
        return f"{first} and {second}, {label}: not distinguishable (difference {mean:+.2f} [{low:.2f}, {high:.2f}])."
    word, bounds = ("higher", (low, high)) if mean > 0 else ("lower", (-high, -low))
    return f"{first}'s {label} is {word} than {second}'s by {abs(mean):.2f} [{bounds[0]:.2f}, {bounds[1]:.2f}]."


def _kl_sentence(first: str, second: str, comparison: Comparison) -> str:
    difference = comparison["metrics"]["kl_sft"]["mean"]
    if comparison["like_kl"]:
        return f"{first} and {second} stand at like KL (difference {difference:+.2f} nats)."
    return (
        f"{first} and {second} stand at unlike KL (difference {difference:+.2f} nats), so a part of their difference "
        "in reward may come from how far each moved from SFT, not from the method."
    )


def _kl_warnings(evaluation: Evaluation) -> Iterator[str]:
    target = evaluation["kl_target"]
    for method in ("rlhf", "ra_rlhf"):
        if method in evaluation["methods"]:
            kl = evaluation["methods"][method]["kl_sft"]["mean"]
            if kl > KL_LIMIT * target:
                yield f"{LABELS[method]}'s KL is {kl:.2f} nats, more than {KL_LIMIT:g} times its target of {target:g}."
