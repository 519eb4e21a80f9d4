"""Files as the project writes them."""

import pytest

from rarlhf.data.rows import Row, read_rows
from rarlhf.system.files import read_jsonl, replaced, write_curve, write_json, write_jsonl


def test_jsonl_round_trip_keeps_any_text(tmp_path):
    records = [{"text": 'naïve \u2028 ✓ \n "x"', "label": 1}, {"text": "", "label": 0}]
    write_jsonl(tmp_path / "a.jsonl", iter(records))
    assert read_jsonl(tmp_path / "a.jsonl") == records
    assert "naïve" in (tmp_path / "a.jsonl").read_text(encoding="utf-8")
    assert (tmp_path / "a.jsonl").read_bytes().count(b"\n") == 2


def test_rows_round_trip_and_leave_out_what_is_not_there(tmp_path):
    rows = [Row("a b", 1), Row("c d", 0, "c", 0.25)]
    write_jsonl(tmp_path / "rows.jsonl", [row.record() for row in rows])
    assert read_rows(tmp_path / "rows.jsonl") == rows
    assert (tmp_path / "rows.jsonl").read_text().splitlines()[0] == '{"text": "a b", "label": 1}'


def test_json_bytes(tmp_path):
    write_json(tmp_path / "a.json", {"b": [1], "a": "é"})
    assert (tmp_path / "a.json").read_bytes() == '{\n  "b": [\n    1\n  ],\n  "a": "é"\n}\n'.encode()


def test_a_curve_is_a_table_of_its_rows(tmp_path):
    path = tmp_path / "curve.csv"
    write_curve([{"step": 1, "loss": 0.1 + 0.2}, {"step": 2, "loss": 1e-05}], path)
    assert path.read_bytes() == b"step,loss\n1,0.30000000000000004\n2,1e-05\n"


def test_a_model_that_was_not_trained_has_a_curve_without_rows(tmp_path):
    path = tmp_path / "curve.csv"
    write_curve([], path)
    assert path.read_bytes() == b"step,loss,lr\n"


def test_a_file_is_replaced_in_one_step_or_not_at_all(tmp_path):
    path = tmp_path / "a.txt"
    with replaced(path) as partial:
        partial.write_text("old")
    with replaced(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    with pytest.raises(OSError, match="no room"), replaced(path) as partial:
        partial.write_text("hal")
        raise OSError("no room")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("a.txt", "new")]
