from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from rarlhf.config.load import load_params
from rarlhf.evaluation.comparisons import Evaluation, compare_methods
from rarlhf.evaluation.headlines import headlines
from rarlhf.evaluation.statistics import over_seeds, paired_difference

PAIR = "ra_rlhf_minus_rlhf"
CHOSEN = load_params(Path(__file__).parents[3] / "presets" / "tiny.yaml").evaluate
AHEAD, EVEN, BEHIND = (0.3, [0.1, 0.5]), (0.0, [-0.1, 0.1]), (-0.3, [-0.5, -0.1])


@pytest.fixture(scope="module")
def measured(tables, perplexities, params) -> Evaluation:
    return compare_methods(tables, perplexities, params)


@pytest.fixture
def evaluation(measured: Evaluation) -> Evaluation:
    return deepcopy(measured)


def set_differences(evaluation: Evaluation, cvar: Any, tail: Any, mean: Any, pair: str = PAIR) -> None:
    for metric, (value, interval) in {"cvar_10": cvar, "prompt_tail": tail, "mean": mean}.items():
        difference: Any = evaluation["comparisons"][pair]["metrics"][f"reward_{metric}"]
        difference |= {"mean": value, "interval": interval}


@pytest.mark.parametrize(
    ("cvar", "tail", "mean", "expected"),
    [
        (
            AHEAD,
            AHEAD,
            EVEN,
            "RA-RLHF's worst answers are better than RLHF's at like KL: CVaR 10 % +0.30 [0.10, 0.50], prompt tail "
            "+0.30 [0.10, 0.50], mean reward +0.00 [-0.10, 0.10] (not distinguishable).",
        ),
        (
            BEHIND,
            AHEAD,
            BEHIND,
            "RA-RLHF's worst answers are worse than RLHF's at like KL: CVaR 10 % -0.30 [-0.50, -0.10], prompt tail "
            "+0.30 [0.10, 0.50] (better), mean reward -0.30 [-0.50, -0.10].",
        ),
        (
            EVEN,
            EVEN,
            BEHIND,
            "RA-RLHF's worst answers are not distinguishable from RLHF's at like KL: CVaR 10 % +0.00 [-0.10, 0.10], "
            "prompt tail +0.00 [-0.10, 0.10], mean reward -0.30 [-0.50, -0.10] (worse).",
        ),
    ],
)
def test_at_like_kl_the_cvar_decides_and_the_others_stand_beside_it(
    evaluation: Evaluation, cvar: Any, tail: Any, mean: Any, expected: str
) -> None:
    set_differences(evaluation, cvar, tail, mean)
    assert headlines(evaluation, CHOSEN) == [expected]


def set_kl(evaluation: Evaluation, rlhf: list[float], ra_rlhf: list[float]) -> None:
    """KL by seed of two methods that are not at like KL."""
    evaluation["methods"]["rlhf"]["kl_sft"], evaluation["methods"]["ra_rlhf"]["kl_sft"] = map(
        over_seeds, (rlhf, ra_rlhf)
    )
    comparison = evaluation["comparisons"][PAIR]
    comparison["metrics"]["kl_sft"] = paired_difference(ra_rlhf, rlhf, 0.0, 0.95)
    comparison["like_kl"] = False


UNLIKE = (
    "RLHF ended at KL 2.10 nats and RA-RLHF at {:.2f}, more than 0.2 apart in {} of 3 seeds: their rewards are not "
    "directly comparable."
)


def test_at_unlike_kl_nobody_is_said_to_win(evaluation: Evaluation) -> None:
    set_differences(evaluation, AHEAD, AHEAD, AHEAD)
    set_kl(evaluation, rlhf=[1.9, 2.0, 2.4], ra_rlhf=[2.9, 2.1, 2.8])
    assert headlines(evaluation, CHOSEN) == [UNLIKE.format(2.6, 2)]


def test_more_reward_at_a_lower_kl_is_said_of_the_tails(evaluation: Evaluation) -> None:
    set_differences(evaluation, AHEAD, EVEN, AHEAD)
    set_kl(evaluation, rlhf=[1.9, 2.0, 2.4], ra_rlhf=[1.0, 1.1, 1.2])
    assert headlines(evaluation, CHOSEN) == [
        UNLIKE.format(1.1, 3)
        + " RA-RLHF has a higher outcome CVaR at 10 % than RLHF (+0.30 [0.10, 0.50]) though its KL "
        "is lower (1.10 against 2.10 nats)."
    ]


def test_what_says_most_comes_first(tables, perplexities, params) -> None:
    names = ("open", "behind", "ahead")
    more = {**tables, **{name: tables["ra_rlhf"] for name in names}}
    evaluation = compare_methods(more, {**perplexities, **{name: perplexities["rlhf"] for name in names}}, params)
    for name, difference in zip(names, (EVEN, BEHIND, AHEAD), strict=True):
        set_differences(evaluation, difference, EVEN, EVEN, f"{name}_minus_rlhf")
    set_kl(evaluation, rlhf=[1.9, 2.0, 2.4], ra_rlhf=[2.9, 2.1, 2.8])
    assert [sentence.split("'s worst")[0] for sentence in headlines(evaluation, CHOSEN)] == [
        "ahead", "behind", "open", UNLIKE.format(2.6, 2),
    ]  # fmt: skip


def test_one_seed_concludes_nothing(tables, perplexities, params) -> None:
    single = {method: {1: by_seed[1]} for method, by_seed in tables.items()}
    result = compare_methods(single, perplexities, params.model_copy(update={"seeds": [1]}))
    assert headlines(result, CHOSEN) == [
        "One seed: intervals speak of the test prompts alone, so nothing is concluded about RA-RLHF against RLHF."
    ]


@pytest.mark.parametrize(
    ("methods", "expected"),
    [
        (("base", "sft"), "No method was trained, so no tails are compared."),
        (("sft", "rlhf"), "RLHF is the only trained method, so its tail is not compared."),
        (("sft", "ra_rlhf"), "RLHF was not run, so the tails of RA-RLHF have nothing to be compared with."),
    ],
)
def test_without_a_pair_there_is_no_verdict(
    methods: tuple[str, ...], expected: str, tables, perplexities, params
) -> None:
    result = compare_methods({method: tables[method] for method in methods}, perplexities, params)
    assert headlines(result, CHOSEN) == [expected]
