from pathlib import Path
from typing import Any, cast

import pytest

from rarlhf.config.load import load_params
from rarlhf.evaluation.comparisons import Evaluation
from rarlhf.evaluation.frontier import SeedCurve, common_kls, compare_at_kl, mean_lines, paired, seed_curves
from rarlhf.evaluation.frontier_page import frontier_page
from rarlhf.evaluation.names import COMPARED
from rarlhf.evaluation.statistics import over_seeds, paired_difference

CHOSEN = load_params(Path(__file__).parents[3] / "presets" / "tiny.yaml").evaluate
SEEDS = [3, 7]


def evaluation(target: float, **methods: tuple[list[float], list[float]]) -> Evaluation:
    """One in which each method has (KL, value) by seed, all metrics but KL with the same value; SFT has -1."""
    spreads = {"sft": {m: over_seeds([0.0, 0.0] if m == "kl_sft" else [-1.0, -1.0]) for m in COMPARED}}
    for method, (kl, values) in methods.items():
        spreads[method] = {m: over_seeds(kl if m == "kl_sft" else values) for m in COMPARED}
    comparisons = {
        f"{method}_minus_rlhf": {"metrics": {m: paired_difference([0.0], [0.0], 0.1 * target, 0.95) for m in COMPARED}}
        for method in methods
        if method != "rlhf"
    }
    content: dict[str, Any] = {"preset": "micro", "seeds": SEEDS, "methods": spreads, "comparisons": comparisons}
    content |= {"test": {"prompts": 30, "samples": 2, "tail_prompts": 3, "tail_rule": ""}, "confidence": 0.95}
    content |= {"kl_target": target, "scored_answers": {"rlhf": 3840, "ra_rlhf": 3840}}
    content["kl_by_decile"] = {method: [[0.1] * 10, [0.3] * 10] for method in spreads}
    return cast("Evaluation", content)


CELLS = {
    "one": ({"kl.target": 1.0}, evaluation(1.0, rlhf=([1.0, 0.8], [1.0, 3.0]), ra_rlhf=([1.0, 1.0], [2.0, 2.0]))),
    "two": ({"kl.target": 2.0}, evaluation(2.0, rlhf=([2.0, 2.8], [3.0, 4.0]), ra_rlhf=([1.9, 2.0], [4.0, 4.0]))),
}
# RLHF's second seed at 1 nat: 3 and the share of the way in sqrt(KL) from 0.8 to 2.8
SECOND = 3.0 + (1.0 - 0.8**0.5) / (2.8**0.5 - 0.8**0.5)
EVALUATIONS = [evaluation for _, evaluation in CELLS.values()]


def test_a_seed_is_interpolated_between_its_own_points_and_never_beyond() -> None:
    first, second = seed_curves(EVALUATIONS, "rlhf")
    assert first.kl == (0.0, 1.0, 2.0) and first.metrics["reward_mean"] == (-1.0, 1.0, 3.0)
    assert first.at("reward_mean", 0.25) == 0.0  # half way from SFT's -1 to 1 in sqrt(KL)
    half = ((0.8**0.5 + 2.8**0.5) / 2) ** 2
    assert second.at("reward_mean", half) == pytest.approx(3.5)  # from (0.8, 3) to (2.8, 4)
    assert SeedCurve((0.0, 1.0), {"perplexity_reference": (3.0, 4.0)}).at("perplexity_reference", 0.25) == 3.25
    assert first.at("reward_mean", 2.0) == 3.0
    assert first.at("reward_mean", 2.01) is None
    assert SeedCurve((0.5, 1.0), {"reward_mean": (1.0, 2.0)}).at("reward_mean", 0.4) is None


def test_points_are_in_the_order_of_their_kl_whatever_the_target() -> None:
    turned = [evaluation(1.0, rlhf=([3.0], [1.0])), evaluation(2.0, rlhf=([2.0], [5.0]))]
    (curve,) = seed_curves(turned, "rlhf")
    assert curve.kl == (0.0, 2.0, 3.0) and curve.metrics["reward_cvar_10"] == (-1.0, 5.0, 1.0)


def test_the_highest_common_kl_is_one_that_all_reach_unless_that_is_far_below() -> None:
    curves = [seed_curves(EVALUATIONS, method) for method in ("rlhf", "ra_rlhf")]
    assert common_kls([2.0, 1.0], curves) == [1.0, 1.9]  # RA-RLHF's first seed ends at 1.9
    assert common_kls([1.0, 2.5], curves) == [1.0, 2.0]  # 20 % below the target, and not at 1.9
    assert common_kls([1.0, 4.0], curves) == [1.0, 1.9]  # neither reaches 3.2 in any seed
    assert common_kls([1.0, 1.5], curves) == [1.0, 1.5]


def test_methods_are_compared_at_common_kl_by_seed() -> None:
    table = compare_at_kl("frontier", CELLS, CHOSEN)
    assert table.kls == [1.0, 1.9]
    row = next(row for row in table.rows if (row.method, row.kl) == ("ra_rlhf", 1.0))
    # RLHF's first seed has 1.0 at 1 nat
    difference = row.differences["reward_cvar_10"]
    assert difference is not None
    assert difference["per_seed"] == pytest.approx([1.0, 2.0 - SECOND])
    assert difference["prompt_error"] == pytest.approx(0.1)  # of the cell whose target is 1
    between = next(row for row in table.rows if (row.method, row.kl) == ("ra_rlhf", 1.9)).differences["reward_mean"]
    assert between is not None and between["prompt_error"] == pytest.approx(0.2)  # the larger one of the two beside it
    assert next(row for row in table.rows if row.method == "rlhf").differences == {}


def test_a_seed_that_does_not_reach_a_kl_is_left_out_and_named() -> None:
    low = evaluation(2.0, rlhf=([2.0, 2.0], [3.0, 4.0]), ra_rlhf=([1.2, 2.0], [4.0, 4.0]))
    table = compare_at_kl("frontier", {**CELLS, "two": ({"kl.target": 2.0}, low)}, CHOSEN)
    row = table.rows[-1]
    assert (row.kl, row.missing) == (1.6, [3])
    spread, difference = row.metrics["reward_mean"], row.differences["reward_mean"]
    assert spread is not None and difference is not None
    assert (spread["n"], difference["n"], difference["interval"]) == (1, 1, None)
    page = frontier_page(table)
    assert "RA-RLHF does not reach a KL of 1.6 in 1 seed" in page.terminal
    assert "| 1 of 2 |" in page.markdown
    neither = evaluation(2.0, rlhf=([2.0, 2.0], [3.0, 4.0]), ra_rlhf=([1.2, 1.25], [4.0, 4.0]))
    table = compare_at_kl("frontier", {**CELLS, "two": ({"kl.target": 2.0}, neither)}, CHOSEN)
    assert (table.kls, table.rows[-1].missing) == ([1.0, 1.2], [])  # and not 1.6, which it does not reach in any seed


def test_a_pair_counts_only_where_both_have_a_value() -> None:
    both = paired([1.0, None, 3.0], [0.5, 1.0, 1.0], 0.0, 0.95)
    assert both is not None and both["per_seed"] == [0.5, 2.0]
    assert paired([None], [1.0], 0.0, 0.95) is None


def test_the_page_has_its_table_its_lines_and_its_picture() -> None:
    page = frontier_page(compare_at_kl("frontier", CELLS, CHOSEN))
    assert page.terminal.startswith("frontier: methods at common KL on preset micro, trained to 1, 2 nats, 2 seeds")
    assert "attainable" not in page.terminal
    heading, *lines = page.rows
    assert len(lines) == 2 * 2 * 4 and all(len(line) == len(heading) for line in lines)
    first = dict(zip(heading, lines[4], strict=True))  # RA-RLHF at 1 nat
    assert (first["method"], first["metric"], first["less RLHF"]) == (
        "ra_rlhf",
        "reward_cvar_10",
        pytest.approx((3.0 - SECOND) / 2),
    )
    assert first["answers scored"] == 3840
    assert page.png is not None and page.png.startswith(b"\x89PNG")
    assert [label for label, _, _ in page.runs][:2] == ["RLHF at KL 1", "RA-RLHF at KL 1"]


def test_what_is_attainable_stands_beside_the_methods() -> None:
    best = {"kl": [0.0, 1.0, 4.0], "metrics": {"reward_mean": [-1.0, 3.0, 6.0], "reward_cvar_10": [-1.0, 2.0, 5.0]}}
    cells = {name: (values, cast("Evaluation", {**e, "attainable": best})) for name, (values, e) in CELLS.items()}
    page = frontier_page(compare_at_kl("frontier", cells, CHOSEN))
    assert "| attainable at KL 1 | 2.00 | – | 3.00 | – |" in page.markdown


def test_lines_are_drawn_where_every_seed_has_a_value() -> None:
    line = list(mean_lines(seed_curves(EVALUATIONS, "rlhf"), "reward_mean", points=3))
    last = 3.0 + (2.0**0.5 - 0.8**0.5) / (2.8**0.5 - 0.8**0.5)
    assert line == [(0.0, -1.0), (1.0, pytest.approx((1.0 + SECOND) / 2)), (2.0, pytest.approx((3.0 + last) / 2))]
