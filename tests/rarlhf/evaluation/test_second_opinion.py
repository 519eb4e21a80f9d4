"""What is said of gains that the second scorer confirms, does not show, or contradicts."""

from typing import Any, cast

from rarlhf.evaluation.comparisons import Evaluation
from rarlhf.evaluation.judged import SECOND
from rarlhf.evaluation.second_opinion import second_opinions

UP, OPEN, DOWN = (0.5, [0.2, 0.8]), (0.1, [-0.2, 0.4]), (-0.5, [-0.8, -0.2])


def difference(mean: float, interval: list[float] | None) -> dict[str, Any]:
    return {"mean": mean, "n": 2, "seed_error": 0.1, "prompt_error": 0.1, "interval": interval, "per_seed": [mean] * 2}


def pair(
    first: str, second: str, like_kl: bool, seen: list[tuple], confirmed: list[tuple], kl: float = 0.5
) -> dict[str, Any]:
    metrics = {name: difference(*value) for name, value in zip(SECOND.values(), seen, strict=True)}
    metrics |= {name: difference(*value) for name, value in zip(SECOND, confirmed, strict=True)}
    metrics["kl_sft"] = difference(kl, None)
    return {"first": first, "second": second, "like_kl": like_kl, "metrics": metrics}


def opinions(*pairs: dict[str, Any]) -> list[str]:
    named = {f"{p['first']}_minus_{p['second']}": p for p in pairs}
    methods = {name: {"kl_sft": {"mean": 1.0}} for name in ("sft", "rlhf", "ra_rlhf")}
    return second_opinions(cast(Evaluation, {"methods": methods, "comparisons": named}))


def test_each_gain_has_its_verdict() -> None:
    assert opinions(pair("rlhf", "sft", False, [UP, UP, UP], [(0.7, [0.3, 1.1]), OPEN, DOWN])) == [
        "RLHF over SFT: the second scorer confirms the gain in mean reward (reward model +0.50 [0.20, 0.80]; second "
        "scorer +0.70 [0.30, 1.10]).",
        "RLHF over SFT: the second scorer does not show the gain in prompt-tail reward (reward model +0.50 [0.20, "
        "0.80]; second scorer +0.10 [-0.20, 0.40]).",
        "Reward hacking, RLHF over SFT: the reward model sees a gain, and the second scorer a loss, in outcome CVaR at "
        "10 % (reward model +0.50 [0.20, 0.80]; second scorer -0.50 [-0.80, -0.20]).",
    ]


def test_what_is_no_gain_needs_no_opinion() -> None:
    assert opinions(pair("rlhf", "sft", False, [OPEN, DOWN, OPEN], [DOWN, DOWN, UP])) == []


def test_between_trained_methods_only_what_the_report_claims() -> None:
    gains = [UP, OPEN, OPEN], [UP, UP, UP]
    assert len(opinions(pair("ra_rlhf", "rlhf", True, *gains))) == 1
    assert opinions(pair("ra_rlhf", "rlhf", False, *gains)) == []
    (ahead,) = opinions(pair("ra_rlhf", "rlhf", False, *gains, kl=-0.2))  # the higher reward at the lower KL
    assert "confirms the gain in mean reward (" in ahead
    losses = [DOWN, OPEN, OPEN], [UP, UP, UP]
    assert opinions(pair("ra_rlhf", "rlhf", False, *losses)) == []


def test_one_seed_shows_nothing() -> None:
    no_interval = (0.5, None)
    assert opinions(pair("rlhf", "sft", False, [no_interval] * 3, [no_interval] * 3)) == []


def test_without_a_second_scorer_nothing_is_said() -> None:
    only = pair("rlhf", "sft", False, [UP, UP, UP], [UP, UP, UP])
    for name in SECOND:
        del only["metrics"][name]
    assert opinions(only) == []
