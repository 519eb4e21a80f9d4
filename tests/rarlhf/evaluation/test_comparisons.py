import json
from dataclasses import replace

import numpy as np
import pytest

from rarlhf.config.errors import UserError
from rarlhf.config.params import Params
from rarlhf.evaluation.comparisons import Evaluation, compare_methods, summary_of
from rarlhf.evaluation.statistics import over_seeds

REQUIRED = {
    "reward_mean", "reward_prompt_tail", "reward_var_05", "reward_var_10", "reward_var_20", "reward_cvar_05",
    "reward_cvar_10", "reward_cvar_20", "kl_sft", "perplexity_reference", "dist_1", "dist_2", "dist_3", "length_mean",
}  # fmt: skip


@pytest.fixture(scope="module")
def evaluation(tables, perplexities, params) -> Evaluation:
    return compare_methods(tables, perplexities, params)


def changed(params: Params, **evaluate_params: object) -> Params:
    return params.model_copy(update={"evaluate": params.evaluate.model_copy(update=evaluate_params)})


def test_has_the_promised_form(evaluation: Evaluation, params: Params) -> None:
    assert (evaluation["preset"], evaluation["seeds"]) == (params.preset, params.seeds)
    assert list(evaluation["methods"]) == ["base", "sft", "rlhf", "ra_rlhf"]
    for spreads in evaluation["methods"].values():
        assert set(spreads) >= REQUIRED
        for spread in spreads.values():
            assert set(spread) == {"mean", "std", "n", "ci95", "per_seed"}
            assert spread["n"] == len(spread["per_seed"]) == 3
    assert json.loads(json.dumps(evaluation, allow_nan=False)) == evaluation


def test_values_come_from_their_own_table(evaluation: Evaluation, tables) -> None:
    for method, by_seed in tables.items():
        expected = [table.scores.mean() for table in by_seed.values()]
        assert evaluation["methods"][method]["reward_mean"]["per_seed"] == pytest.approx(expected)
    assert evaluation["methods"]["ra_rlhf"]["perplexity_reference"]["per_seed"] == [47.0, 47.9, 46.8]


def test_prompt_tail_is_fixed_by_the_prompts(tables, perplexities, params: Params) -> None:
    tenth = compare_methods(tables, perplexities, params)
    assert tenth["test"] == {
        "prompts": 40, "samples": 4, "tail_prompts": 4, "tail_rule": "lowest 10% by prompt score"
    }  # fmt: skip
    whole = compare_methods(tables, perplexities, changed(params, tail_quantile=None, tail_threshold=1e9))
    assert whole["test"]["tail_prompts"] == 40
    for spreads in whole["methods"].values():
        assert spreads["reward_prompt_tail"]["mean"] == pytest.approx(spreads["reward_mean"]["mean"])
    with pytest.raises(UserError, match="tail_threshold"):
        compare_methods(tables, perplexities, changed(params, tail_quantile=None, tail_threshold=-1e9))


def test_comparisons_are_later_less_earlier(evaluation: Evaluation) -> None:
    assert list(evaluation["comparisons"]) == [
        "sft_minus_base", "rlhf_minus_base", "ra_rlhf_minus_base",
        "rlhf_minus_sft", "ra_rlhf_minus_sft", "ra_rlhf_minus_rlhf",
    ]  # fmt: skip
    methods = evaluation["methods"]
    difference = evaluation["comparisons"]["rlhf_minus_sft"]["metrics"]["reward_cvar_10"]
    assert difference["mean"] == pytest.approx(
        methods["rlhf"]["reward_cvar_10"]["mean"] - methods["sft"]["reward_cvar_10"]["mean"]
    )
    assert difference["prompt_error"] > 0


def test_prompt_tail_has_the_error_of_its_few_prompts(evaluation: Evaluation) -> None:
    # 4 of 40 prompts: the error of a mean is about sqrt(10) = 3.2 times that over all prompts
    metrics = evaluation["comparisons"]["rlhf_minus_sft"]["metrics"]
    assert metrics["reward_prompt_tail"]["prompt_error"] > 1.6 * metrics["reward_mean"]["prompt_error"]


def test_like_kl_is_told_from_unlike(tables, perplexities, params: Params) -> None:
    # target 2, so like means within 0.2 nats: 2.0 and 2.1 are, 2.1 and 0 are not
    at_2 = params.model_copy(update={"kl": params.kl.model_copy(update={"target": 2.0})})
    evaluation = compare_methods(tables, perplexities, at_2)
    assert evaluation["comparisons"]["ra_rlhf_minus_rlhf"]["like_kl"]
    assert not evaluation["comparisons"]["rlhf_minus_sft"]["like_kl"]


def test_like_kl_is_not_a_matter_of_the_mean(tables, perplexities, params: Params) -> None:
    def at(*by_seed: float) -> dict:
        rows = zip(tables["rlhf"].items(), by_seed, strict=True)
        return {seed: replace(table, kl=np.full_like(table.kl, kl)) for (seed, table), kl in rows}

    moved = {"sft": tables["sft"], "rlhf": at(1.9, 2.2, 2.2), "ra_rlhf": at(2.9, 2.5, 1.1)}
    comparison = compare_methods(moved, perplexities, params)["comparisons"]["ra_rlhf_minus_rlhf"]
    assert comparison["metrics"]["kl_sft"]["mean"] == pytest.approx(0.2 / 3)  # 6.5 - 6.3 over three seeds
    assert not comparison["like_kl"]


def test_methods_in_another_order_are_compared_as_ever(tables, perplexities, params: Params) -> None:
    turned = compare_methods({method: tables[method] for method in ("ra_rlhf", "rlhf", "sft")}, perplexities, params)
    usual = compare_methods({method: tables[method] for method in ("sft", "rlhf", "ra_rlhf")}, perplexities, params)
    assert turned["comparisons"] == usual["comparisons"]


def test_other_names_than_the_pipelines_are_compared_in_their_order(tables, perplexities, params: Params) -> None:
    """As `benchmarks.measures` gives them."""
    names = {"none": "rlhf", "cvar": "ra_rlhf", "a mix": "sft"}
    renamed = {name: tables[method] for name, method in names.items()}
    result = compare_methods(renamed, {name: perplexities[method] for name, method in names.items()}, params)
    assert list(result["comparisons"]) == ["cvar_minus_none", "a mix_minus_none", "a mix_minus_cvar"]


def test_unlike_seeds_are_not_paired(tables, perplexities, params: Params) -> None:
    first, second, third = tables["ra_rlhf"].values()
    other = {**tables, "ra_rlhf": {1: first, 2: second, 4: third}}
    with pytest.raises(UserError, match=r"ra_rlhf has seeds 1, 2, 4 and base has 1, 2, 3"):
        compare_methods(other, perplexities, params)


def test_numbers_that_are_not_finite_are_refused(tables, perplexities, params: Params) -> None:
    with pytest.raises(UserError, match="perplexity_reference of rlhf, seed 2, is inf"):
        compare_methods(tables, {**perplexities, "rlhf": {1: 44.0, 2: float("inf"), 3: 44.0}}, params)


def test_a_small_tail_is_told_exactly(tables, perplexities, params: Params) -> None:
    single = compare_methods(tables, perplexities, changed(params, tail_quantile=0.005))
    assert single["test"]["tail_rule"] == "lowest 0.5% by prompt score"
    difference = single["comparisons"]["ra_rlhf_minus_rlhf"]["metrics"]["reward_prompt_tail"]
    assert single["test"]["tail_prompts"] == 1
    assert (difference["prompt_error"], difference["interval"]) == (None, None)  # one prompt says nothing of others


def test_a_method_equals_itself(tables, perplexities, params: Params) -> None:
    twins = {"sft": tables["sft"], "rlhf": tables["sft"]}
    twin_perplexities = {"sft": perplexities["sft"], "rlhf": perplexities["sft"]}
    for difference in compare_methods(twins, twin_perplexities, params)["comparisons"]["rlhf_minus_sft"][
        "metrics"
    ].values():
        assert (difference["mean"], difference["prompt_error"], difference["interval"]) == (0.0, 0.0, None)


def test_confidence_and_seed_change_the_intervals_alone(tables, perplexities, params: Params) -> None:
    default = compare_methods(tables, perplexities, params)
    wide = compare_methods(tables, perplexities, changed(params, confidence=0.99))
    redrawn = compare_methods(tables, perplexities, changed(params, seed=99))
    assert default["methods"] == wide["methods"] == redrawn["methods"]
    pair = "ra_rlhf_minus_rlhf"
    narrow, broad, other = (e["comparisons"][pair]["metrics"]["reward_mean"] for e in (default, wide, redrawn))
    assert broad["interval"][0] < narrow["interval"][0] < narrow["interval"][1] < broad["interval"][1]
    assert other["prompt_error"] != narrow["prompt_error"]
    assert default == compare_methods(tables, perplexities, params)


def test_the_intervals_of_one_seed_have_the_prompts_error_alone(tables, perplexities, params: Params) -> None:
    single = {method: {1: by_seed[1]} for method, by_seed in tables.items()}
    result = compare_methods(single, perplexities, params.model_copy(update={"seeds": [1]}))
    assert result["methods"]["rlhf"]["reward_mean"]["ci95"] is None
    found = result["comparisons"]["rlhf_minus_sft"]["metrics"]["reward_mean"]
    half = 1.959964 * found["prompt_error"]
    assert found["interval"] == pytest.approx([found["mean"] - half, found["mean"] + half])
    assert found["seed_error"] is None


def test_the_summary_has_short_names_and_three_decimals(evaluation: Evaluation) -> None:
    spreads = {metric: over_seeds([1.23456, 1.23456]) for metric in ("reward_mean", "kl_sft", "length_mean")}
    short = summary_of({**evaluation, "methods": {"rlhf": spreads}})
    assert short == {"rlhf": {"mean": 1.235, "kl": 1.235}}
    names = ["mean", "tail", "cvar_10", "kl", "perplexity"]
    assert {method: list(numbers) for method, numbers in summary_of(evaluation).items()} == {
        method: names for method in evaluation["methods"]
    }
