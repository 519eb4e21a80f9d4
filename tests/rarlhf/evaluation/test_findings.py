from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from rarlhf.config.load import load_params
from rarlhf.evaluation.comparisons import Evaluation, compare_methods
from rarlhf.evaluation.findings import best_methods, findings, kl_warnings, mark_explained, verdict
from rarlhf.evaluation.statistics import like_kl, over_seeds, paired_difference
from rarlhf.evaluation.tables import terminal_table

PAIR = "ra_rlhf_minus_rlhf"
CHOSEN = load_params(Path(__file__).parents[3] / "presets" / "tiny.yaml").evaluate


@pytest.fixture(scope="module")
def measured(tables, perplexities, params) -> Evaluation:
    return compare_methods(tables, perplexities, params)


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
    difference: Any = {"mean": mean, "interval": interval, "n": 2}
    assert verdict(difference, sign) == expected
    assert verdict(difference | {"n": 1}, sign) == "open"


def test_a_difference_beyond_its_interval_is_told_with_direction(evaluation: Evaluation) -> None:
    set_difference(evaluation, "reward_prompt_tail", 0.35, [0.1, 0.6])
    set_difference(evaluation, "reward_cvar_10", -0.35, [-0.6, -0.1])
    set_difference(evaluation, "reward_mean", 0.05, [-0.1, 0.2])
    said = findings(evaluation, CHOSEN, "rlhf")
    assert "RA-RLHF's prompt-tail reward is higher than RLHF's by 0.35 [0.10, 0.60]." in said
    assert "RA-RLHF's outcome CVaR at 10 % is lower than RLHF's by 0.35 [0.10, 0.60]." in said
    assert "RA-RLHF and RLHF, mean reward: not distinguishable (difference +0.05 [-0.10, 0.20])." in said


def set_kl(evaluation: Evaluation, **by_seed: list[float]) -> None:
    """The KL of methods, and what follows from it for RA-RLHF less RLHF; no error from the prompts."""
    for method, values in by_seed.items():
        evaluation["methods"][method]["kl_sft"] = over_seeds(values)
    comparison = evaluation["comparisons"][PAIR]
    first, second = (evaluation["methods"][comparison[place]]["kl_sft"]["per_seed"] for place in ("first", "second"))
    comparison["metrics"]["kl_sft"] = paired_difference(first, second, 0.0, 0.95)
    comparison["like_kl"] = like_kl(comparison["metrics"]["kl_sft"], evaluation["kl_target"], CHOSEN)


def test_at_unlike_kl_nobody_is_said_to_win(evaluation: Evaluation) -> None:
    set_difference(evaluation, "reward_prompt_tail", 0.35, [0.1, 0.6])
    set_difference(evaluation, "reward_mean", -0.35, [-0.6, -0.1])
    set_difference(evaluation, "reward_cvar_10", 0.2, None)
    set_kl(evaluation, rlhf=[1.9, 2.2, 2.2], ra_rlhf=[2.9, 2.5, 1.1])
    assert "RA-RLHF and RLHF are not at like KL" in terminal_table(evaluation, CHOSEN).splitlines()[-1]
    said = findings(evaluation, CHOSEN, "rlhf")
    assert said[0] == (
        "RA-RLHF and RLHF are not at like KL (more than 0.2 nats apart in 3 of 3 seeds). By seed, in nats: RA-RLHF "
        "2.90, 2.50, 1.10, RLHF 1.90, 2.20, 2.20; target 2. Their rewards may differ because of how far each moved "
        "from SFT, so a higher reward at the higher KL does not show which method is better."
    )
    assert said[1:4] == [
        "RA-RLHF less RLHF, mean reward, not at like KL: -0.35, [-0.60, -0.10].",
        "RA-RLHF less RLHF, prompt-tail reward, not at like KL: +0.35, [0.10, 0.60].",
        "RA-RLHF less RLHF, outcome CVaR at 10 %, not at like KL: +0.20, no interval.",
    ]
    against_sft = findings(evaluation, CHOSEN, "sft")  # the start
    assert any(sentence.startswith("RLHF's mean reward is higher than SFT's") for sentence in against_sft)


@pytest.mark.parametrize("winner", ["ra_rlhf", "rlhf"])
def test_more_reward_at_a_lower_kl_is_said(evaluation: Evaluation, winner: str) -> None:
    names = {"ra_rlhf": "RA-RLHF", "rlhf": "RLHF"}
    (loser,) = names.keys() - {winner}
    sign = 1 if winner == "ra_rlhf" else -1
    set_difference(evaluation, "reward_mean", 0.0, [-0.1, 0.1])
    set_difference(evaluation, "reward_prompt_tail", -sign * 0.35, sorted([-sign * 0.1, -sign * 0.6]))
    set_difference(evaluation, "reward_cvar_10", sign * 0.38, sorted([sign * 0.18, sign * 0.58]))
    set_kl(evaluation, **{winner: [1.0, 1.1, 1.2], loser: [1.9, 2.0, 2.4]})
    sentence = (
        f"{names[winner]} has a higher outcome CVaR at 10 % than {names[loser]} (+0.38 [0.18, 0.58]) though its KL is "
        "lower (1.10 against 2.10 nats)."
    )
    said = findings(evaluation, CHOSEN, "rlhf")
    assert said[1] == "RA-RLHF less RLHF, mean reward, not at like KL: +0.00, [-0.10, 0.10]."
    assert said[2].startswith("RA-RLHF less RLHF, prompt-tail reward, not at like KL: ")
    assert said[3] == sentence


@pytest.mark.parametrize(
    ("mean", "interval", "kl"),
    [
        (0.38, [-0.1, 0.86], [1.0, 1.1, 1.2]),  # not distinguishable
        (0.38, None, [1.0, 1.1, 1.2]),
        (0.38, [0.18, 0.58], [1.0, 1.1, 2.5]),  # a lower KL on average alone
        (0.38, [0.18, 0.58], [1.0, 1.1, 2.4]),  # equal in one seed
        (-0.38, [-0.58, -0.18], [1.0, 1.1, 1.2]),  # less reward at the lower KL
        (0.38, [0.18, 0.58], [2.9, 3.0, 3.4]),  # more at the higher one
    ],
)
def test_of_other_rewards_at_unlike_kl_nothing_is_said(
    evaluation: Evaluation, mean: float, interval: list[float] | None, kl: list[float]
) -> None:
    for metric in ("reward_mean", "reward_prompt_tail", "reward_cvar_10"):
        set_difference(evaluation, metric, mean, interval)
    set_kl(evaluation, ra_rlhf=kl, rlhf=[1.9, 2.0, 2.4])
    assert not any("though its KL" in sentence for sentence in findings(evaluation, CHOSEN, "rlhf"))


def test_at_like_kl_a_lower_kl_is_not_said(evaluation: Evaluation) -> None:
    set_difference(evaluation, "reward_cvar_10", 0.38, [0.18, 0.58])
    set_kl(evaluation, ra_rlhf=[1.9, 2.0, 2.1], rlhf=[2.0, 2.1, 2.2])
    said = findings(evaluation, CHOSEN, "rlhf")
    assert said[3] == "RA-RLHF's outcome CVaR at 10 % is higher than RLHF's by 0.38 [0.18, 0.58]."


def test_like_kl_says_by_what(evaluation: Evaluation) -> None:
    set_kl(evaluation, rlhf=[2.0, 2.1, 2.0], ra_rlhf=[1.9, 2.2, 2.2])
    seen = "By seed, in nats: RA-RLHF 1.90, 2.20, 2.20, RLHF 2.00, 2.10, 2.00; target 2."
    assert findings(evaluation, CHOSEN, "rlhf")[0] == f"RA-RLHF and RLHF are at like KL in every seed. {seen}"
    set_kl(evaluation, rlhf=[2.0] * 8, ra_rlhf=[2.02] * 7 + [2.25])  # one seed apart, and an interval of [-0.02, 0.12]
    first = findings(evaluation, CHOSEN, "rlhf")[0]
    assert first.startswith("RA-RLHF and RLHF are at like KL by the 95% interval of their difference. By seed")


@pytest.mark.parametrize("alike", [True, False])
def test_best_needs_like_kl_between_trained_methods(evaluation: Evaluation, alike: bool) -> None:
    for comparison in evaluation["comparisons"].values():
        sign = 1 if comparison["first"] == "ra_rlhf" else -1
        comparison["metrics"]["reward_mean"] |= {"mean": sign * 1.0, "interval": sorted([sign * 0.5, sign * 1.5])}
    evaluation["comparisons"][PAIR]["like_kl"] = alike
    assert best_methods(evaluation, "reward_mean") == (["ra_rlhf"] if alike else [])


def test_kl_far_above_its_target_is_said_by_seed(evaluation: Evaluation) -> None:
    assert list(kl_warnings(evaluation, CHOSEN)) == []
    set_kl(evaluation, rlhf=[3.2, 1.0, 1.0])  # target 2, limit 3; the mean is below it
    (warning,) = kl_warnings(evaluation, CHOSEN)
    assert warning == (
        "RLHF's KL is more than 1.5 times its target of 2 nats in 1 of 3 seeds (by seed: 3.20, 1.00, 1.00)."
    )


def test_one_seed_concludes_nothing(tables, perplexities, params) -> None:
    single = {method: {1: by_seed[1]} for method, by_seed in tables.items()}
    result = compare_methods(single, perplexities, params.model_copy(update={"seeds": [1]}))
    said = findings(result, CHOSEN, "rlhf") + findings(result, CHOSEN, "sft")
    assert said and all("higher" not in sentence and "lower" not in sentence for sentence in said)
    assert best_methods(result, "reward_mean") == []


@pytest.mark.parametrize(
    ("methods", "sentences"), [(("base", "sft"), 0), (("sft", "rlhf"), 3), (("sft", "ra_rlhf"), 3)]
)
def test_without_a_pair_there_is_no_verdict(
    methods: tuple[str, ...], sentences: int, tables, perplexities, params
) -> None:
    result = compare_methods({method: tables[method] for method in methods}, perplexities, params)
    assert findings(result, CHOSEN, "rlhf") == []
    assert len(findings(result, CHOSEN, "sft")) == sentences  # one for each reward


def test_limits_are_those_of_the_params(evaluation: Evaluation) -> None:
    set_kl(evaluation, rlhf=[3.2, 1.0, 1.0], ra_rlhf=[3.3, 1.1, 1.0])  # target 2; at most 0.1 apart, 0.05 of the target
    strict = CHOSEN.model_copy(update={"like_kl": 0.04, "like_kl_confidence": 0.9, "kl_limit": 1.7})
    evaluation["comparisons"][PAIR]["like_kl"] = False  # as an evaluation with these params has it
    said = findings(evaluation, strict, "rlhf")
    assert "(more than 0.08 nats apart in 2 of 3 seeds)" in said[0]
    assert list(kl_warnings(evaluation, strict)) == []  # 3.3 is below 1.7 x 2
    assert mark_explained(strict).startswith(
        "† not at like KL: the KL of the two differs by more than 4% of the target"
    )
    assert "the 90% interval" in mark_explained(strict)


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
