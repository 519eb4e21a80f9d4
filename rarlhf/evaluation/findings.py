"""What the intervals say, in plain sentences.

A difference counts only if its interval leaves out zero. Between two trained methods, by PPO or by a fit, it counts
only at like KL (`statistics.like_kl`), because reward can be bought with KL. What a method has at a lower KL was not
bought with it, so that is told too. A method that training starts from, such as SFT, is never at like KL with a trained
one, so there the difference always counts.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from rarlhf.config.methods import RLHF, in_order, is_trained, label_of
from rarlhf.config.params import EvaluateParams
from rarlhf.evaluation.comparisons import Comparison, Evaluation
from rarlhf.evaluation.statistics import (
    Difference,
    distinguishable,
    distinguishable_over_seeds,
    seeds_at_unlike_kl,
)
from rarlhf.evaluation.words import counted, percent

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
MARK = "†"  # after the names of two methods that are not at like KL

Verdict = Literal["better", "worse", "open"]


def mark_explained(params: EvaluateParams) -> str:
    """What `MARK` means: for the report, for cards, and under an ablation's table."""
    return (
        f"{MARK} not at like KL: the KL of the two differs by more than {percent(params.like_kl)} of the target in at "
        f"least one seed, and the {percent(params.like_kl_confidence)} interval of the difference also extends past "
        "that limit. More KL can buy more reward, so these reward differences alone do not show which method is better."
    )


def compared_with_rlhf(evaluation: Evaluation) -> list[str]:
    """The trained methods other than RLHF, in their order."""
    return [method for method in in_order(evaluation["methods"]) if is_trained(method) and method != RLHF]


def verdict(difference: Difference, sign: int) -> Verdict:
    """Whether the first method is better, worse, or `open`, for a metric of that sign.

    It is open where zero lies in the interval, and for one seed, which says nothing of methods.
    """
    if not distinguishable_over_seeds(difference):
        return "open"
    return "better" if difference["mean"] * sign > 0 else "worse"


def comparable(comparison: Comparison) -> bool:
    """Whether rewards may say which of two methods is better: at like KL, or if training starts from one of them."""
    return comparison["like_kl"] or not (is_trained(comparison["first"]) and is_trained(comparison["second"]))


def best_methods(evaluation: Evaluation, metric: str) -> list[str]:
    """The method that is better than every other one, by comparable rewards; most runs have none.

    Returns: one method or none.
    """
    return [m for m in evaluation["methods"] if len(evaluation["methods"]) > 1 and _beats_all(evaluation, m, metric)]


def _beats_all(evaluation: Evaluation, method: str, metric: str) -> bool:
    for comparison in evaluation["comparisons"].values():
        measured = metric in comparison["metrics"]
        if method not in (comparison["first"], comparison["second"]) or not measured:
            continue
        wanted = "better" if method == comparison["first"] else "worse"
        if not comparable(comparison) or verdict(comparison["metrics"][metric], SIGN[metric]) != wanted:
            return False
    return True


def findings(evaluation: Evaluation, params: EvaluateParams, other: str) -> list[str]:
    """Sentences on each trained method against another one, `rlhf` or `sft`, in their order.

    Args:
        evaluation: content of metrics/evaluate.json.
        params: section `evaluate`, of which `like_kl` and `like_kl_confidence` are read.
        other: the method that they are compared with; without it there is nothing to say.
    """
    pairs = (f"{method}_minus_{other}" for method in [RLHF, *compared_with_rlhf(evaluation)])
    found = (evaluation["comparisons"].get(pair) for pair in pairs)
    return [sentence for pair in found if pair is not None for sentence in _sentences(evaluation, pair, params)]


def unlike_kl(evaluation: Evaluation, params: EvaluateParams) -> list[str]:
    """A line for each trained method that is not at like KL with RLHF."""
    pairs = (evaluation["comparisons"].get(f"{method}_minus_{RLHF}") for method in compared_with_rlhf(evaluation))
    return [_unlike(evaluation, pair, params) for pair in pairs if pair is not None and not comparable(pair)]


def _unlike(evaluation: Evaluation, comparison: Comparison, params: EvaluateParams) -> str:
    difference, target = comparison["metrics"]["kl_sft"], evaluation["kl_target"]
    seeds = f"{seeds_at_unlike_kl(difference, target, params)} of {counted(difference['n'], 'seed')}"
    pair = f"{label_of(comparison['first'])} and {label_of(comparison['second'])}"
    return f"{pair} are not at like KL (more than {params.like_kl * target:g} nats apart in {seeds})"


def pair_label(comparison: Comparison) -> str:
    """`RA-RLHF - RLHF`, with `MARK` where the two are not at like KL."""
    mark = "" if comparison["like_kl"] else f" {MARK}"
    return f"{label_of(comparison['first'])} - {label_of(comparison['second'])}{mark}"


def _sentences(evaluation: Evaluation, comparison: Comparison, params: EvaluateParams) -> Iterator[str]:
    first, second = label_of(comparison["first"]), label_of(comparison["second"])
    if is_trained(comparison["second"]):
        yield _kl_sentence(evaluation, comparison, params)
    for metric in REWARDS:
        say = _sentence if comparable(comparison) else _bare_difference
        ahead = None if comparable(comparison) else at_lower_kl(evaluation, comparison, metric)
        yield ahead or say(first, second, METRIC_LABELS[metric], comparison["metrics"][metric])


def _sentence(first: str, second: str, label: str, difference: Difference) -> str:
    if difference["interval"] is None:
        return f"{first} and {second}, {label}: difference {difference['mean']:+.2f}, no interval."
    low, high = difference["interval"]
    mean = difference["mean"]
    if difference["n"] < 2:
        return (
            f"{first} and {second}, {label}: difference {mean:+.2f} [{low:.2f}, {high:.2f}] over prompts, of one seed."
        )
    if not distinguishable(difference["interval"]):
        return f"{first} and {second}, {label}: not distinguishable (difference {mean:+.2f} [{low:.2f}, {high:.2f}])."
    word, bounds = ("higher", (low, high)) if mean > 0 else ("lower", (-high, -low))
    return f"{first}'s {label} is {word} than {second}'s by {abs(mean):.2f} [{bounds[0]:.2f}, {bounds[1]:.2f}]."


def _bare_difference(first: str, second: str, label: str, difference: Difference) -> str:
    """The difference without a verdict."""
    interval = difference["interval"]
    shown = "no interval" if interval is None else f"[{interval[0]:.2f}, {interval[1]:.2f}]"
    return f"{first} less {second}, {label}, not at like KL: {difference['mean']:+.2f}, {shown}."


def at_lower_kl(evaluation: Evaluation, comparison: Comparison, metric: str) -> str | None:
    """A sentence on the method that has the higher reward at the lower KL of two that are not at like KL.

    Returns: None unless the interval of the difference leaves out zero and that method's KL is lower in every seed.
    """
    difference, kl = comparison["metrics"][metric], comparison["metrics"]["kl_sft"]
    interval = difference["interval"]
    sign = 1 if difference["mean"] > 0 else -1
    if verdict(difference, 1) == "open" or interval is None or any(value * sign >= 0 for value in kl["per_seed"]):
        return None
    pair = (comparison["first"], comparison["second"])[::sign]
    higher, lower = map(label_of, pair)
    low, high = sorted(sign * bound for bound in interval)
    shown = f"{abs(difference['mean']):+.2f} [{low:.2f}, {high:.2f}]"
    nats = " against ".join(f"{evaluation['methods'][method]['kl_sft']['mean']:.2f}" for method in pair)
    return f"{higher} has a higher {METRIC_LABELS[metric]} than {lower} ({shown}) though its KL is lower ({nats} nats)."


def _kl_sentence(evaluation: Evaluation, comparison: Comparison, params: EvaluateParams) -> str:
    methods, target = (comparison["first"], comparison["second"]), evaluation["kl_target"]
    pair = " and ".join(label_of(method) for method in methods)
    listed = (
        f"{label_of(method)} {_listed(evaluation['methods'][method]['kl_sft']['per_seed'])}" for method in methods
    )
    seen = f"By seed, in nats: {', '.join(listed)}; target {target:g}."
    if not comparison["like_kl"]:
        return (
            f"{_unlike(evaluation, comparison, params)}. {seen} Their rewards may differ because of how far each moved "
            "from SFT, so a higher reward at the higher KL does not show which method is better."
        )
    if seeds_at_unlike_kl(comparison["metrics"]["kl_sft"], target, params):
        return f"{pair} are at like KL by the {percent(params.like_kl_confidence)} interval of their difference. {seen}"
    return f"{pair} are at like KL in every seed. {seen}"


def kl_warnings(evaluation: Evaluation, params: EvaluateParams) -> Iterator[str]:
    """A sentence for each method whose KL is above `kl_limit` times its target in a seed."""
    target = evaluation["kl_target"]
    for method in filter(is_trained, in_order(evaluation["methods"])):
        per_seed = evaluation["methods"][method]["kl_sft"]["per_seed"]
        above = sum(kl > params.kl_limit * target for kl in per_seed)
        if above:
            yield (
                f"{label_of(method)}'s KL is more than {params.kl_limit:g} times its target of {target:g} nats in "
                f"{above} of {counted(len(per_seed), 'seed')} (by seed: {_listed(per_seed)})."
            )


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.2f}" for value in values)
