from pathlib import Path
from typing import Any, cast

from rarlhf.config.load import load_params
from rarlhf.evaluation.ablation import CellTable, compare_cells, csv_rows, markdown, terminal
from rarlhf.evaluation.comparisons import Evaluation
from rarlhf.evaluation.findings import mark_explained
from rarlhf.evaluation.names import COMPARED
from rarlhf.evaluation.statistics import over_seeds, paired_difference

RLHF = [1.0, 2.0]
CHOSEN = load_params(Path(__file__).parents[3] / "presets" / "tiny.yaml").evaluate


def evaluation(methods: dict[str, list[float]], like_kl: bool = True, kl_target: float = 2.0) -> Evaluation:
    """An evaluation in which every metric of a method has the same value, one per seed."""
    spreads = {method: {metric: over_seeds(values) for metric in COMPARED} for method, values in methods.items()}
    comparisons = {}
    for method in set(methods) - {"base", "sft", "rlhf"} if "rlhf" in methods else ():
        less = {metric: paired_difference(methods[method], methods["rlhf"], 0.5, 0.95) for metric in COMPARED}
        comparisons[f"{method}_minus_rlhf"] = {"metrics": less, "like_kl": like_kl}
    test = {"prompts": 30, "samples": 2, "tail_prompts": 3, "tail_rule": ""}
    content = {"preset": "micro", "seeds": [3, 7], "methods": spreads, "comparisons": comparisons, "test": test}
    return cast("Evaluation", content | {"confidence": 0.95, "kl_target": kl_target})


def compared(name: str, of_cells: dict[str, tuple[dict[str, Any], Evaluation]]) -> CellTable:
    return compare_cells(name, of_cells, CHOSEN)


def cells(**measured: dict[str, list[float]]) -> dict[str, tuple[dict[str, Any], Evaluation]]:
    return {
        name: ({"risk.alpha": 0.1 * number}, evaluation(methods))
        for number, (name, methods) in enumerate(measured.items(), 1)
    }


def test_cells_are_compared_with_rlhf_which_stands_once_where_it_is_the_same() -> None:
    table = compared("alpha", cells(a={"rlhf": RLHF, "ra_rlhf": [2.0, 4.0]}, b={"rlhf": RLHF, "ra_rlhf": RLHF}))
    assert [row.label for row in table.rows] == ["RLHF, every cell", "RA-RLHF a", "RA-RLHF b"]
    assert table.reference == "RLHF"
    of_a = table.rows[1].differences["reward_mean"]
    assert of_a["mean"] == 1.5  # ((2 - 1) + (4 - 2)) / 2
    assert of_a["prompt_error"] == 0.5  # as the cell's own evaluation says
    assert table.rows[0].differences == {}


def test_rlhf_stands_once_for_each_cell_where_it_differs() -> None:
    table = compared("lr", cells(a={"rlhf": RLHF, "ra_rlhf": RLHF}, b={"rlhf": [1.0, 2.5], "ra_rlhf": RLHF}))
    assert [row.label for row in table.rows] == ["RLHF a", "RLHF b", "RA-RLHF a", "RA-RLHF b"]


def test_without_rlhf_cells_are_compared_with_the_first_by_seed() -> None:
    table = compared("lr", cells(a={"sft": RLHF}, b={"sft": [2.0, 1.0]}))
    assert table.reference == "a"
    first, second = table.rows
    assert first.differences == {}
    assert second.differences["reward_mean"]["per_seed"] == [1.0, -1.0]
    assert second.differences["reward_mean"]["prompt_error"] == 0


def test_the_texts_show_intervals_and_mark_what_leaves_out_zero() -> None:
    shared = {"rlhf": [0.0, 0.0]}
    table = compared("alpha", cells(a=shared | {"ra_rlhf": [4.0, 4.0]}, b=shared | {"ra_rlhf": [1.0, 2.0]}))
    lines = terminal(table).splitlines()
    assert lines[0] == "alpha: 2 cells on preset micro, seeds 3, 7; 30 test prompts x 2 samples; prompt tail: 3 prompts"
    (less_a,) = [line for line in lines if line.startswith("RA-RLHF a") and "[" in line]
    assert less_a.count("+4.00 [3.02, 4.98] *") == 3  # 4 -+ 1.96 x .5: no spread over seeds, the prompts' error alone
    (value_b,) = [line for line in lines if line.startswith("RA-RLHF b") and "[" not in line]
    assert "1.50 ±6.35" in value_b  # 12.706 x .5
    assert "as about 0.3 of these 6 would by chance alone" in lines[-1]
    assert "| RA-RLHF b | 1.50 ±6.35 |" in markdown(table)


def test_names_of_cells_are_shown_as_they_are_in_markdown() -> None:
    name = "label-<img src=x onerror=alert(1)>|`a`\nb"
    text = markdown(compared(name, cells(**{name: {"sft": [1.0]}, "b": {"sft": [2.0]}})))
    shown = "label-&lt;img src=x onerror=alert(1)&gt;\\|\\`a\\` b"
    assert f"\n| SFT {shown} | 1.00 |" in text and f"| less {shown} | reward |" in text
    assert text.startswith(f"{shown}: 2 cells")


def test_one_seed_gives_no_interval() -> None:
    table = compared("alpha", cells(a={"sft": [1.0]}, b={"sft": [2.0]}))
    assert "| sft b | 2.00 |".replace("sft", "SFT") in markdown(table)
    heading, *lines = csv_rows(table)
    assert heading[:4] == ["cell", "risk.alpha", "method", "metric"]
    assert ["b", 0.2, "sft", "reward_mean", 2.0, "", 1, "", "", 1.0, "", "", False] in lines  # its KL too is 1 apart
    assert all(len(line) == len(heading) for line in lines)


def test_unlike_kl_is_marked_and_explained() -> None:
    both = {"rlhf": RLHF, "ra_rlhf": RLHF}
    table = compared("alpha", {"a": ({}, evaluation(both)), "b": ({}, evaluation(both, like_kl=False))})
    marked = [line for line in terminal(table).splitlines() if "†" in line]
    assert [line.split("  ")[0] for line in marked] == ["RA-RLHF b †", mark_explained(CHOSEN)]
    assert "| RA-RLHF b † | +0.00" in markdown(table)
    assert [line[-1] for line in csv_rows(table) if line[2] == "reward_mean"] == ["", True, False]
    alike = compared("alpha", {"a": ({}, evaluation(both))})
    assert "†" not in terminal(alike)


def test_cells_of_unlike_targets_are_held_to_the_lower_one() -> None:
    def alike(first: float, second: float) -> bool | None:
        cells = {
            "a": ({}, evaluation({"rlhf": [2.0]}, kl_target=first)),
            "b": ({}, evaluation({"rlhf": [2.3]}, kl_target=second)),
        }
        return compared("kl", cells).rows[1].like_kl

    assert [alike(4.0, 4.0), alike(4.0, 2.0), alike(2.0, 4.0)] == [True, False, False]  # 0.3 is within 0.4, not 0.2


def test_methods_in_another_order_are_compared_with_rlhf_too() -> None:
    table = compared("alpha", cells(a={"ra_rlhf": [2.0, 4.0], "rlhf": RLHF, "base": RLHF}))
    assert [(row.label, row.method) for row in table.rows] == [("RLHF, every cell", "rlhf"), ("RA-RLHF a", "ra_rlhf")]


def test_every_method_that_ppo_trained_has_rows_and_is_compared_with_rlhf() -> None:
    own = {"rlhf": RLHF, "cautious": [3.0, 4.0]}  # the cells do not change it
    table = compared("alpha", cells(a={**own, "ra_rlhf": [2.0, 4.0]}, b={**own, "ra_rlhf": RLHF}))
    assert [row.label for row in table.rows] == ["RLHF, every cell", "RA-RLHF a", "cautious, every cell", "RA-RLHF b"]
    assert table.rows[2].differences["reward_mean"]["per_seed"] == [2.0, 2.0]
    table = compared("alpha", cells(a={**own, "ra_rlhf": RLHF}, b={"rlhf": RLHF, "cautious": RLHF, "ra_rlhf": RLHF}))
    labels = ["RLHF, every cell", "RA-RLHF, every cell", "cautious a", "cautious b"]
    assert [row.label for row in table.rows] == labels


def test_methods_without_rlhf_are_each_compared_with_their_own_in_the_first_cell() -> None:
    table = compared("alpha", cells(a={"ra_rlhf": [0.0], "bold": [5.0]}, b={"ra_rlhf": [1.0], "bold": [7.0]}))
    assert [row.label for row in table.rows] == ["RA-RLHF a", "bold a", "RA-RLHF b", "bold b"]
    assert [row.differences["reward_mean"]["per_seed"] for row in table.rows[2:]] == [[1.0], [2.0]]


def test_cells_that_change_nothing_have_a_row_each() -> None:
    same = {"rlhf": RLHF, "ra_rlhf": RLHF, "cautious": RLHF}
    rows = compared("lr", cells(a=same, b=same)).rows
    assert [row.label for row in rows[1:]] == ["RA-RLHF a", "cautious a", "RA-RLHF b", "cautious b"]
