from copy import deepcopy
from typing import Any

import pytest

from rarlhf.evaluation.evaluate import Evaluation, evaluate
from rarlhf.evaluation.findings import best_methods, findings, headline, verdict

PAIR = "ra_rlhf_minus_rlhf"


@pytest.fixture(scope="module")
def measured(tables, perplexities, params) -> Evaluation:
    return evaluate(tables, perplexities, params)


@pytest.fixture
def evaluation(measured: Evaluation) -> Evaluation:
    return deepcopy(measured)


def set_difference(evaluation: Evaluation, metric: str, mean: float, interval: list[float] | None) -> None:
    evaluation["comparisons"][PAIR]["metrics"][metric] |= {"mean": mean, "interval": interval}  # type: ignore[typeddict-item]


@pytest.mark.parametrize(
    ("mean", "interval", "sign", "expected"),
    [
        (0.3, [0.1, 0.5], 1, "better"),
        (-0.3, [-0.5, -0.1], 1, "worse"),
        (0.3, [0.1, 0.5], -1, "worse"),
        (0.3, [-0.1, 0.7], 1, "open"),
        (0.3, None, 1, "open"),
    ],
)
def test_verdict(mean: float, interval: Any, sign: int, expected: str) -> None:
    difference: Any = {"mean": mean, "interval": interval}
    assert verdict(difference, sign) == expected


def test_a_difference_beyond_its_interval_is_told_with_direction(evaluation: Evaluation) -> None:
    set_difference(evaluation, "reward_prompt_tail", 0.35, [0.1, 0.6])
    set_difference(evaluation, "reward_cvar_10", -0.35, [-0.6, -0.1])
    set_difference(evaluation, "reward_mean", 0.05, [-0.1, 0.2])
    said = findings(evaluation)
    assert "RA-RLHF's prompt-tail reward is higher than RLHF's by 0.35 [0.10, 0.60]." in said
    assert "RA-RLHF's outcome CVaR at 10 % is lower than RLHF's by 0.35 [0.10, 0.60]." in said
    assert "RA-RLHF and RLHF, mean reward: not distinguishable (difference +0.05 [-0.10, 0.20])." in said


@pytest.mark.parametrize(
    ("tail", "cvar", "expected"),
    [
        (
            (0.3, [0.1, 0.5]),
            (0.3, [0.1, 0.5]),
            "RA-RLHF is ahead of RLHF on prompt-tail reward and outcome CVaR at 10 %.",
        ),
        (
            (0.3, [0.1, 0.5]),
            (0.0, [-0.1, 0.1]),
            "RA-RLHF is ahead of RLHF on prompt-tail reward; not distinguishable from RLHF on outcome CVaR at 10 %.",
        ),
        (
            (-0.3, [-0.5, -0.1]),
            (0.0, [-0.1, 0.1]),
            "RA-RLHF does not win here: it is behind RLHF on prompt-tail reward; not distinguishable from RLHF on "
            "outcome CVaR at 10 %.",
        ),
        (
            (0.0, [-0.5, 0.5]),
            (0.0, [-0.1, 0.1]),
            "RA-RLHF does not win here: it is not distinguishable from RLHF on prompt-tail reward and outcome CVaR at "
            "10 %.",
        ),
    ],
)
def test_headline(evaluation: Evaluation, tail: Any, cvar: Any, expected: str) -> None:
    set_difference(evaluation, "reward_prompt_tail", *tail)
    set_difference(evaluation, "reward_cvar_10", *cvar)
    assert headline(evaluation) == expected


def test_unlike_kl_is_said_in_headline_and_findings(evaluation: Evaluation) -> None:
    assert "unlike" not in headline(evaluation)
    assert any("stand at like KL" in sentence for sentence in findings(evaluation))
    evaluation["comparisons"][PAIR]["like_kl"] = False
    assert headline(evaluation).endswith("The two stand at unlike KL.")
    assert any("RA-RLHF and RLHF stand at unlike KL" in sentence for sentence in findings(evaluation))


def test_kl_far_above_its_target_is_said(evaluation: Evaluation) -> None:
    assert not any("times its target" in sentence for sentence in findings(evaluation))
    evaluation["methods"]["rlhf"]["kl_sft"]["mean"] = 3.2  # target 2, limit 3
    assert "RLHF's KL is 3.20 nats, more than 1.5 times its target of 2." in findings(evaluation)


def test_one_seed_concludes_nothing(tables, perplexities, params) -> None:
    single = {method: {1: by_seed[1]} for method, by_seed in tables.items()}
    result = evaluate(single, perplexities, params.model_copy(update={"seeds": [1]}))
    assert headline(result).startswith("One seed")
    assert all("higher" not in sentence and "lower" not in sentence for sentence in findings(result))
    assert best_methods(result, "reward_mean") == []


def test_without_both_trained_methods_there_is_no_verdict(tables, perplexities, params) -> None:
    result = evaluate({method: tables[method] for method in ("base", "sft")}, perplexities, params)
    assert headline(result) == "RLHF and RA-RLHF were not both run, so their tails are not compared."
    assert findings(result) == []


def test_best_needs_every_interval_on_its_side(evaluation: Evaluation) -> None:
    for comparison in evaluation["comparisons"].values():
        sign = 1 if comparison["first"] == "ra_rlhf" else -1
        comparison["metrics"]["reward_mean"] |= {"mean": sign * 1.0, "interval": sorted([sign * 0.5, sign * 1.5])}
    assert best_methods(evaluation, "reward_mean") == ["ra_rlhf"]
    set_difference(evaluation, "reward_mean", 1.0, [-0.5, 2.5])
    assert best_methods(evaluation, "reward_mean") == []


def test_best_perplexity_is_the_lowest(evaluation: Evaluation) -> None:
    for comparison in evaluation["comparisons"].values():
        sign = 1 if comparison["second"] == "base" else -1
        comparison["metrics"]["perplexity_reference"] |= {
            "mean": sign * 1.0,
            "interval": sorted([sign * 0.5, sign * 1.5]),
        }
    assert best_methods(evaluation, "perplexity_reference") == ["base"]
