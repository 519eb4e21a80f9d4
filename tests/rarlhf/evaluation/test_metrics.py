from dataclasses import replace

import numpy as np
import pytest
import torch

from rarlhf.config.errors import UserError
from rarlhf.evaluation.metrics import (
    cvar,
    cvar_curve,
    distinct_continuations,
    distinct_ngrams,
    kl_by_decile,
    measure,
    prompt_tail,
    quantile_curve,
    repetition,
    tail_size,
    value_at_risk,
)
from rarlhf.risk import tail as risk

RETURNS = np.array([0.0, -3.0, 2.0, -1.0])  # sorted: -3, -1, 0, 2
MIXED = np.random.default_rng(3).normal(size=(7, 5))


def test_cvar_counts_the_value_at_the_edge_in_part() -> None:
    # alpha n = 1.6: the lowest whole, the next by 0.6: (-3 - 0.6) / 1.6 = -2.25
    assert cvar(RETURNS, 0.4) == pytest.approx(-2.25)
    # alpha n = 2: (-3 - 1) / 2
    assert cvar(RETURNS, 0.5) == pytest.approx(-2.0)
    # alpha n = 0.4 < 1: the minimum
    assert cvar(RETURNS, 0.1) == pytest.approx(-3.0)


@pytest.mark.parametrize("alpha", [0.05, 0.28, 0.4, 0.5, 0.93, 1.0])
def test_cvar_is_the_rockafellar_uryasev_maximum(alpha: float) -> None:
    values = MIXED.reshape(-1)
    # the maximum over eta of a concave, piecewise linear function lies at one of the values
    maximum = max(eta - np.maximum(eta - values, 0).mean() / alpha for eta in values)
    assert cvar(values, alpha) == pytest.approx(maximum, abs=1e-12)


def test_cvar_identities() -> None:
    values = MIXED.reshape(-1)
    alphas = [0.05, 0.1, 0.2, 0.5, 0.8, 1.0]
    tails = [float(cvar(values, alpha)) for alpha in alphas]
    assert tails == sorted(tails)
    assert tails[-1] == pytest.approx(values.mean())
    assert cvar(3 * values + 2, 0.2) == pytest.approx(3 * tails[2] + 2)
    assert cvar(values[::-1], 0.2) == cvar(values, 0.2)
    assert all(cvar(values, alpha) <= value_at_risk(values, alpha) for alpha in alphas)
    assert cvar(-values, 0.2) != pytest.approx(-tails[2])  # the upper tail is another number


def test_value_at_risk_is_the_first_value_with_enough_below() -> None:
    # ceil(0.4 x 4) = 2nd lowest; ceil(0.5 x 4) = 2nd; ceil(0.51 x 4) = 3rd
    assert [float(value_at_risk(RETURNS, alpha)) for alpha in (0.4, 0.5, 0.51, 1.0)] == [-1, -1, 0, 2]


@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.28, 0.4, 1.0])
@pytest.mark.parametrize("tied", [False, True])
def test_reported_and_trained_tails_have_one_definition(alpha: float, tied: bool) -> None:
    """There are two, for arrays and for tensors, which add in another order: equal but for the last digits."""
    random = np.random.default_rng(3)
    for count in (1, 2, 7, 128, 4800):
        values = random.integers(0, 4, size=count) / 3 if tied else random.normal(size=count)
        tensor = torch.tensor(values)
        assert cvar(values, alpha) == pytest.approx(float(risk.cvar(tensor, alpha)), rel=1e-13, abs=1e-15)
        assert value_at_risk(values, alpha) == float(risk.value_at_risk(tensor, alpha))


def test_tail_size_is_exact() -> None:
    assert tail_size(0.28, 25) == 7  # in floats 7.000000000000001, whose ceiling is 8
    for share, count in ((0.0, 3), (1.1, 3), (0.5, 0)):
        with pytest.raises(ValueError, match="tail"):
            tail_size(share, count)


def test_cvar_curve_matches_single_levels() -> None:
    alphas = [0.1, 0.37, 1.0]
    assert cvar_curve(MIXED, alphas).tolist() == [cvar(MIXED.reshape(-1), alpha) for alpha in alphas]


def test_prompt_tail_by_quantile_takes_the_lowest_prompts_and_breaks_ties_by_id() -> None:
    scores = np.array([2.0, -1.0, 0.0, -1.0, -1.0])
    # ceil(0.3 x 5) = 2 of the three prompts at -1
    assert prompt_tail(scores, 0.3, None).tolist() == [False, True, False, True, False]


def test_prompt_tail_by_threshold_includes_the_threshold() -> None:
    assert prompt_tail(np.array([-2.5, -2.4, -3.0]), None, -2.5).tolist() == [True, False, True]


def test_prompt_tail_refuses_an_empty_tail_and_no_rule() -> None:
    with pytest.raises(UserError, match=r"tail_threshold = -2.5.*lowest: -1.000"):
        prompt_tail(np.array([-1.0, 0.0]), None, -2.5)
    with pytest.raises(UserError, match="both are null"):
        prompt_tail(np.array([-1.0, 0.0]), None, None)


def test_quantile_curve_is_a_cumulative_mean_by_prompt_score() -> None:
    prompt_scores = np.array([3.0, 1.0, 2.0])
    scores = np.array([[6.0, 8.0], [1.0, 3.0], [4.0, 6.0]])  # means 7, 2, 5; by prompt score: 2, 5, 7
    # 1 % and 33 % are one prompt: 2; 34 % and 66 % two: 3.5; 67 % and 100 % three: 14 / 3
    assert quantile_curve(prompt_scores, scores, [1, 33, 34, 66, 67, 100]).tolist() == pytest.approx(
        [2, 2, 3.5, 3.5, 14 / 3, 14 / 3]
    )


def test_repetition_is_within_a_continuation() -> None:
    twice = "a b c d a b c d"  # 4-grams abcd, bcda, cdab, dabc, abcd
    assert repetition([[twice, "a b c d e"], ["a b c", ""]]) == pytest.approx(0.2 / 4)
    assert repetition([["a a a a a"]]) == pytest.approx(0.5)
    assert repetition([["a b a b"]], n=2) == pytest.approx(1 / 3)


def test_distinct_ngrams_by_hand() -> None:
    # first prompt: 3 + 3 words; unigrams a b c d: 4/6; bigrams ab bc bd: 3/6 ("c a" would cross texts); trigrams 2/6
    # second prompt: 1 word twice: 1/2, no bigram
    texts = [["a b c", "a  b\td"], ["x", "x"]]
    assert distinct_ngrams(texts, 1) == pytest.approx((4 / 6 + 1 / 2) / 2)
    assert distinct_ngrams(texts, 2) == pytest.approx((3 / 6 + 0) / 2)
    assert distinct_ngrams(texts, 3) == pytest.approx((2 / 6 + 0) / 2)


def test_distinct_ngrams_of_empty_texts_is_zero() -> None:
    assert distinct_ngrams([["", " "]], 1) == 0.0


def test_distinct_continuations_pools_all_prompts() -> None:
    assert distinct_continuations([["a", "b"], ["a", "c"]]) == 3 / 4


def test_measure_by_hand(make_table) -> None:
    # two prompts, two samples; mixture 0 1 2 7; tail: prompt 1 alone
    table = make_table([[7.0, 1.0], [0.0, 2.0]], prompt_scores=[1.0, -1.0], kl=0.5)
    values = measure(table, np.array([False, True]), max_new_tokens=4)
    assert values["reward_mean"] == 2.5
    assert values["reward_prompt_tail"] == 1.0
    assert values["reward_var_20"] == 0.0
    assert values["reward_cvar_20"] == 0.0  # 0.8 of one value: the minimum
    assert values["reward_cvar_of_means_10"] == 1.0  # lower of the means 4 and 1
    assert values["kl_sft"] == 0.5
    assert values["length_mean"] == 3.5  # 3 and 4 tokens
    assert values["length_limit_share"] == 0.5
    assert "reward_prompt_cvar_10" not in values


def test_measures_of_the_tails_by_hand(make_table) -> None:
    # ten prompts, two samples: 19 18, 17 16, ... 1 0; the worst 5, 10 and 20 % are one, two and four of twenty
    table = make_table([[19.0 - 2 * i, 18.0 - 2 * i] for i in range(10)])
    values = measure(replace(table, kl=np.arange(20.0).reshape(10, 2)), np.arange(10) == 3, max_new_tokens=9)
    expected = {"05": (0.0, 0.0), "10": (1.0, 0.5), "20": (3.0, 1.5)}
    assert {name: (values[f"reward_var_{name}"], values[f"reward_cvar_{name}"]) for name in expected} == expected
    assert values["reward_cvar_of_means_10"] == 0.5  # the lowest of .5, 2.5, ...
    assert values["kl_sft"] == 9.5  # of all prompts, not of the tail
    assert values["reward_prompt_tail"] == 12.5  # 13 and 12


def test_prompt_cvar_needs_ten_samples(make_table) -> None:
    ten = make_table([list(range(10)), list(range(5, 15))])
    # one sample of ten each: (0 + 5) / 2, where a fifth would be (.5 + 5.5) / 2
    assert measure(ten, np.array([True, False]), 9)["reward_prompt_cvar_10"] == 2.5
    nine = make_table([list(range(9)), list(range(9))])
    assert "reward_prompt_cvar_10" not in measure(nine, np.array([True, False]), 9)


def test_cvar_of_the_mixture_is_the_lowest_of_the_three_outcome_tails(make_table) -> None:
    random = np.random.default_rng(1)
    for _ in range(20):
        scores = random.normal(size=(11, 10)) + random.normal(size=(11, 1))
        values = measure(make_table(scores.tolist()), np.arange(11) < 2, 9)  # a tail of 2 of 11 prompts
        assert values["reward_cvar_10"] <= values["reward_prompt_cvar_10"] + 1e-12
        assert values["reward_cvar_10"] <= values["reward_cvar_of_means_10"] + 1e-12
        assert values["reward_cvar_of_means_10"] <= values["reward_prompt_tail"] + 1e-12


def test_kl_by_decile_of_the_prompts_own_scores(make_table) -> None:
    table = make_table([[0.0, 0.0]] * 20, prompt_scores=[-float(p) for p in range(20)])  # prompt 19 is the lowest
    kl = np.arange(40.0).reshape(20, 2)
    found = kl_by_decile(replace(table, kl=kl))
    assert found[0] == 37.5  # prompts 19 and 18: (36 + 37 + 38 + 39) / 4
    assert len(found) == 10
    few = make_table([[0.0]] * 3, kl=0.5)
    assert kl_by_decile(few) == [0.5, 0.5, 0.5]
