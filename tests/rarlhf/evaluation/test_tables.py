from copy import deepcopy

import pytest

from rarlhf.config.load import load_params
from rarlhf.evaluation.comparisons import Evaluation, compare_methods
from rarlhf.evaluation.statistics import over_seeds
from rarlhf.evaluation.tables import (
    aligned,
    difference_text,
    judged_columns,
    judged_notes,
    number,
    seed_rows,
    terminal_table,
    with_half_width,
)
from tests.rarlhf.evaluation.runs import TINY


@pytest.mark.parametrize(
    ("value", "text"),
    [(1.234, "1.23"), (-99.994, "-99.99"), (123.45, "123.5"), (-1234.5, "-1234"), (123456.0, "1e+05"), (0.0, "0.00")],
)
def test_number(value: float, text: str) -> None:
    assert number(value) == text


def test_half_width_is_left_out_where_there_is_none() -> None:
    assert with_half_width(over_seeds([1.0, 2.0, 3.0]), 0.95) == "2.00 ±2.48"  # 4.3027 / sqrt(3)
    assert with_half_width(over_seeds([2.0]), 0.95) == "2.00"
    assert with_half_width(over_seeds([2.0, 2.0]), 0.95) == "2.00"


def test_difference_text() -> None:
    difference = {"mean": 0.305, "interval": [-0.1, 0.71]}
    assert difference_text(difference) == "+0.30 [-0.10, 0.71]"
    assert difference_text({"mean": -4.4, "interval": None}) == "-4.40"


def test_columns_line_up() -> None:
    assert aligned([["a", "b"], ["long", "1"], ["x", "-22"]]).splitlines() == [
        "a       b", "---------", "long    1", "x     -22"
    ]  # fmt: skip


def test_terminal_table_names_every_method_and_fits(tables, perplexities, params) -> None:
    evaluation = compare_methods(tables, perplexities, params)
    text = terminal_table(evaluation, params.evaluate)
    assert "tiny: 3 seeds, 40 test prompts x 4 samples; prompt tail: 4 prompts" in text
    heading, _, *rows = text.split("\n\n")[1].splitlines()
    assert [row.split()[0] for row in rows] == ["Base", "SFT", "RLHF", "RA-RLHF"]
    assert heading.split("  ")[0] == "method" and "KL, nats" in heading
    wide = deepcopy(evaluation)
    for spreads in wide["methods"].values():
        for spread in spreads.values():
            spread |= {"mean": -1234.0, "per_seed": [-1211.0, -1234.0, -1257.0]}
    assert max(map(len, terminal_table(wide, params.evaluate).splitlines())) <= 100


def test_a_row_for_each_seed_has_its_own_numbers(tables, perplexities, params) -> None:
    evaluation = compare_methods(tables, perplexities, params)
    evaluation["methods"]["rlhf"]["share_mean"] = over_seeds([0.5, 0.75, 1.0])
    rows = seed_rows(evaluation, ["reward_mean", "share_mean"])
    assert [row[:2] for row in rows[6:9]] == [["RLHF", "1"], ["RLHF", "2"], ["RLHF", "3"]]
    assert rows[7][2:] == [f"{evaluation['methods']['rlhf']['reward_mean']['per_seed'][1]:.2f}", "75%"]
    assert rows[0][3] == "–"


def test_repetition_alone_is_no_judge(tables, perplexities, params) -> None:
    evaluation = deepcopy(compare_methods(tables, perplexities, params))
    assert "repetition_4" in evaluation["methods"]["rlhf"]
    assert judged_columns(evaluation) == {}
    spread = evaluation["methods"]["rlhf"]["reward_mean"]
    methods = {name: {**spreads, "perplexity_dropped": spread} for name, spreads in evaluation["methods"].items()}
    methods["rlhf"]["perplexity_continuation"] = spread
    judged: Evaluation = {**evaluation, "methods": methods}
    assert list(judged_columns(judged)) == ["perplexity_continuation", "repetition_4"]
    perplexity, _ = judged_notes(judged, load_params(TINY).judge, {})
    assert perplexity.endswith("RA-RLHF: in some seed every continuation was left out of it.")


@pytest.mark.parametrize(
    ("measured", "sentence"),
    [
        (
            {"auc": 0.86223, "rows": 2000},
            " Its AUC on 2,000 test rows is 0.862: the chance that it scores a row of the ",
        ),
        ({"score_mean": 0.1, "rows": 9}, " Its AUC is not known, because the test rows have no labels. "),
    ],
)
def test_the_second_scorers_auc_stands_by_its_numbers(measured, sentence: str, tables, perplexities, params) -> None:
    evaluation = deepcopy(compare_methods(tables, perplexities, params))
    evaluation["methods"]["rlhf"]["second_mean"] = evaluation["methods"]["rlhf"]["reward_mean"]
    second, *_ = judged_notes(evaluation, params.judge, measured)
    assert sentence in second
