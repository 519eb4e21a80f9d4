import json
from pathlib import Path

import numpy as np
import pytest

from rarlhf.config.errors import UserError
from rarlhf.evaluation.generations import check_comparable, read_generations, read_tables, stacked, to_generations


def write(path: Path, rows: list) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_rows_in_any_order_give_the_same_table(make_rows) -> None:
    rows = make_rows([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    table = to_generations(rows[::-1], "a test")
    assert table.prompt_ids.tolist() == [0, 1, 2]
    assert table.scores.tolist() == [[1, 2], [3, 4], [5, 6]]
    assert table.continuations[2] == ("text 2 0", "text 2 1")
    assert table.tokens.tolist() == [[3, 4]] * 3


def test_missing_or_doubled_samples_are_refused(make_rows) -> None:
    rows = make_rows([[1.0, 2.0], [3.0, 4.0]])
    with pytest.raises(UserError, match=r"prompt 1 has samples \[0\], expected \[0, 1\]"):
        to_generations(rows[:-1], "a test")
    with pytest.raises(UserError, match="prompt 0 has samples"):
        to_generations([*rows, rows[0]], "a test")
    with pytest.raises(UserError, match="no generations"):
        to_generations([], "a test")


@pytest.mark.parametrize("field", ["prompt_score", "score", "kl_sft"])
def test_numbers_that_are_not_finite_are_refused(make_rows, field: str) -> None:
    rows = make_rows([[1.0]])
    rows[0][field] = float("nan")
    with pytest.raises(UserError, match=f"a {field} is not finite"):
        to_generations(rows, "a test")


def test_reading_tables(tmp_path: Path, make_rows) -> None:
    for method, score in (("sft", 1.0), ("rlhf", 2.0)):
        for seed in (4, 7):
            write(tmp_path / method / f"{seed}.jsonl", make_rows([[score], [score + seed]]))
    tables = read_tables(tmp_path, ["sft", "rlhf"], [4, 7])
    assert stacked(tables["rlhf"], "scores").tolist() == [[[2], [6]], [[2], [9]]]


def test_files_that_are_missing_or_broken_are_refused(tmp_path: Path, make_rows) -> None:
    with pytest.raises(UserError, match=r"generations of sft/1.jsonl are missing"):
        read_generations(tmp_path / "sft" / "1.jsonl")
    path = write(tmp_path / "sft" / "1.jsonl", [{"prompt_id": 0, "sample": 0}])
    with pytest.raises(UserError, match=r"sft/1.jsonl is not a file of generations \('prompt"):
        read_generations(path)
    path.write_text('{"prompt_id": 0', encoding="utf-8")
    with pytest.raises(UserError, match=r"sft/1.jsonl is not a file of generations"):
        read_generations(path)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("score", "abc", "could not convert string to float"),
        ("prompt", None, "prompt of prompt 0 is None"),
        ("continuation", None, "continuation of prompt 0 is None"),
        ("tokens", 2.5, "tokens of prompt 0 is 2.5"),
        ("tokens", -1, "tokens of prompt 0 is -1"),
    ],
)
def test_values_of_another_kind_are_refused(tmp_path: Path, make_rows, field: str, value: object, said: str) -> None:
    rows = make_rows([[1.0, 2.0], [3.0, 4.0]])
    rows[0][field] = value
    with pytest.raises(UserError, match=rf"sft/1.jsonl is not a file of generations \({said}"):
        read_generations(write(tmp_path / "sft" / "1.jsonl", rows))


@pytest.mark.parametrize(("field", "value"), [("prompt", "another"), ("prompt_score", 9.0)])
def test_two_prompts_under_one_id_are_refused(make_rows, field: str, value: object) -> None:
    rows = make_rows([[1.0, 2.0], [3.0, 4.0]])
    rows[1][field] = value
    with pytest.raises(UserError, match="a test: the samples of prompt 0 are of different prompts"):
        to_generations(rows, "a test")


def test_a_continuation_without_a_token_counts(make_rows) -> None:
    rows = make_rows([[1.0], [2.0]], texts=[[""], ["one two"]])
    rows[0]["tokens"] = 0
    table = to_generations(rows, "a test")
    assert table.tokens.tolist() == [[0], [4 - 1]]
    assert table.continuations == (("",), ("one two",))


def test_unlike_prompts_or_samples_are_not_compared(make_table) -> None:
    table = make_table([[1.0, 2.0], [3.0, 4.0]])
    check_comparable({"sft": {1: table}, "rlhf": {1: make_table([[9.0, 9.0], [9.0, 9.0]])}})
    for other in (
        make_table([[1.0], [3.0]]),
        make_table([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]),
        make_table([[1.0, 2.0], [3.0, 4.0]], prompt_scores=[0.0, 0.5]),
    ):
        with pytest.raises(UserError, match="generations rlhf/1 and sft/1 do not answer the same prompts"):
            check_comparable({"sft": {1: table}, "rlhf": {1: other}})


def test_text_with_line_separators_stays_one_row(tmp_path: Path, make_rows) -> None:
    rows = make_rows([[1.0]], texts=[["one\u2028two"]])
    path = tmp_path / "sft" / "1.jsonl"
    path.parent.mkdir()
    path.write_text(json.dumps(rows[0], ensure_ascii=False) + "\n", encoding="utf-8")
    table = read_generations(path)
    assert table.continuations == (("one\u2028two",),)
    assert np.isfinite(table.scores).all()
