"""Rules by which rows are used: labels that are numbers or not there, lengths, shares, and files of labels."""

import json

import pytest

from rarlhf.config.errors import UserError
from rarlhf.data.rows import Row
from rarlhf.data.sources import NO_LABEL, OTHER_SHARE, OVERLAP, TO_TEST, fingerprint, load_raw_rows, load_rows
from tests.rarlhf.data.written import FORMS, RECORDS, as_csv, data_params, rows_of, write

pytestmark = pytest.mark.usefixtures("folder")
# As real-toxicity-prompts has them: texts and toxicity within `prompt`, which is null or 0 in some rows.
TOXICITY = [0.9, 0.1, 0.5, None, 0, 0.51, 0.0, 0.2, float("nan")]
PROMPTS = [
    {"filename": "a", "prompt": {"text": f"prompt {i}", "toxicity": value}, "continuation": {"text": "x"}}
    for i, value in enumerate(TOXICITY)
]
RTP = {
    "columns": {"text": "prompt.text", "label": "prompt.toxicity", "toxicity": "prompt.toxicity"},
    "no_label": [None, 0],
    "label_above": 0.5,
    "positive_label": 0,
}


@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
def test_a_number_becomes_a_class_and_rows_without_one_are_dropped(folder, ending):
    write(folder, PROMPTS, PROMPTS, ending)
    rows, counts = load_rows(data_params(**RTP), "train")
    assert [(row.text, row.label, row.toxicity) for row in rows] == [
        ("prompt 0", 0, 0.9), ("prompt 1", 1, 0.1), ("prompt 2", 1, 0.5), ("prompt 5", 0, 0.51), ("prompt 7", 1, 0.2)
    ]  # fmt: skip
    assert counts.record() == {"read": 9, "used": 5, "dropped": {NO_LABEL: 4}}


def test_a_missing_number_that_is_not_named_is_an_error(folder):
    write(folder, PROMPTS)
    with pytest.raises(UserError, match="train.jsonl line 4: column prompt.toxicity holds None, which names no class"):
        load_rows(data_params(**RTP | {"no_label": [0]}), "train")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": "prompt.body"}, "line 1 lacks the column prompt.body; it has filename, prompt, continuation: set"),
        ({"text": "body.text"}, "line 1 lacks the column body.text"),
        ({"label": "prompt.text.x"}, "line 1 lacks the column prompt.text.x"),
    ],
)
def test_a_field_that_is_not_there_is_named(folder, columns, message):
    write(folder, PROMPTS)
    with pytest.raises(UserError, match=message):
        load_rows(data_params(**RTP | {"columns": RTP["columns"] | columns}), "train")


def test_a_field_that_a_row_lacks_is_named(folder):
    write(folder, [*PROMPTS[:2], {"filename": "b", "prompt": None, "continuation": None}], PROMPTS, ".parquet")
    with pytest.raises(UserError, match=r"parquet row 3 lacks the field prompt\.toxicity; set data.columns"):
        load_rows(data_params(**RTP), "train")


def test_a_column_may_have_a_dot_in_its_name(folder):
    (folder / "train.csv").write_text("a.b,label\ngood,1\nbad,0\n")
    assert load_rows(data_params(columns={"text": "a.b"}), "train")[0] == [Row("good", 1), Row("bad", 0)]


@pytest.mark.parametrize("none", [-1, "-1"])
def test_labels_that_mean_no_label(folder, none):
    write(folder, [{"text": "a", "label": -1}, {"text": "b", "label": 1}, {"text": "c", "label": 0}])
    rows, counts = load_rows(data_params(no_label=[none]), "train")
    assert rows == [Row("b", 1), Row("c", 0)]
    assert counts.dropped == {NO_LABEL: 1}


def test_short_texts_are_dropped_from_both_splits(folder):
    write(folder, [{"text": "x" * n, "label": n % 2} for n in range(1, 9)], [{"text": "y" * 4, "label": 0}, *RECORDS])
    raw = load_raw_rows(data_params(min_chars=5))
    assert [len(row.text) for row in raw.train] == [5, 6, 7, 8]
    assert raw.counts["train"].dropped == {"shorter than 5 characters": 4}
    assert raw.counts["test"].record() == {"read": 11, "used": 10, "dropped": {"shorter than 5 characters": 1}}


def test_test_rows_of_the_training_split(folder):
    write(folder, [{"text": f"row {i}", "label": int(i % 4 == 0)} for i in range(40)])
    (folder / "test.jsonl").unlink()
    raw = load_raw_rows(data_params(test_share=0.2))
    assert sorted(row.label for row in raw.test) == [0] * 6 + [1] * 2
    assert sorted(row.label for row in raw.train) == [0] * 24 + [1] * 8
    assert not {row.text for row in raw.train} & {row.text for row in raw.test}
    assert raw.counts["train"].record() == {"read": 40, "used": 32, "dropped": {TO_TEST: 8}}
    assert raw.counts["test"].record() == {"read": 8, "used": 8, "dropped": {}}
    assert list(fingerprint(data_params(test_share=0.2))["files"]) == ["train.jsonl"]


def test_a_text_that_is_there_twice_is_not_in_both(folder):
    write(folder, [{"text": f"row {i // 2}", "label": i // 2 % 2} for i in range(40)])
    raw = load_raw_rows(data_params(test_share=0.5))
    assert not {row.text for row in raw.train} & {row.text for row in raw.test}
    assert raw.counts["train"].dropped[OVERLAP] > 0


def test_shares_of_the_wanted_class(folder):
    records = [{"text": f"row {i}", "label": int(i % 10 != 0)} for i in range(200)]  # 180 wanted, 20 not
    write(folder, records, [{"text": f"test {i}", "label": int(i % 4 == 0)} for i in range(40)])
    share = data_params().wanted_share.model_copy(update={"train": 0.8, "test": 0.5})
    raw = load_raw_rows(data_params(wanted_share=share))
    assert sorted(row.label for row in raw.train) == [0] * 20 + [1] * 80
    assert sorted(row.label for row in raw.test) == [0] * 10 + [1] * 10
    assert raw.counts["train"].dropped == {OTHER_SHARE: 100}
    fewer = load_raw_rows(data_params(wanted_share=share, train_rows=50, test_rows=8))
    assert sorted(row.label for row in fewer.train) == [0] * 10 + [1] * 40
    assert sorted(row.label for row in fewer.test) == [0] * 4 + [1] * 4


# As the Jigsaw challenge gives them: labels with the training texts, and in a file of their own for the test texts.
KAGGLE = {
    "train.csv": [{"id": f"a{i}", "comment_text": f"comment {i}", "toxic": i % 2, "obscene": 0} for i in range(6)],
    "test.csv": [{"id": f"b{i}", "comment_text": f"test comment {i}"} for i in range(6)],
    "test_labels.csv": [{"id": f"b{i}", "toxic": [1, -1, 0, -1, 0, 1][i], "obscene": -1} for i in (3, 1, 0, 5, 4, 2)],
}
JIGSAW = {"columns": {"text": "comment_text", "label": "toxic", "id": "id"}, "positive_label": 0, "no_label": [-1]}


def test_labels_in_a_file_of_their_own(folder):
    for name, records in KAGGLE.items():
        (folder / name).write_bytes(as_csv(records))
    raw = load_raw_rows(data_params(**JIGSAW))
    assert [row.label for row in raw.train] == [1, 0, 1, 0, 1, 0]
    assert raw.test == [Row(f"test comment {i}", label) for i, label in ((0, 0), (2, 1), (4, 1), (5, 0))]
    assert raw.counts["test"].record() == {"read": 6, "used": 4, "dropped": {NO_LABEL: 2}}
    files = fingerprint(data_params(**JIGSAW))["files"]
    assert list(files) == ["train.csv", "test.csv", "test_labels.csv"]


@pytest.mark.parametrize(
    ("file", "records", "message"),
    [
        ("test_labels.csv", KAGGLE["test_labels.csv"][1:], "test.csv line 5: test_labels.csv has no row with id 'b3'"),
        ("test_labels.csv", [{"key": "b1", "toxic": 0}], "test_labels.csv line 1, the header, lacks the column id"),
        ("test.csv", [{"comment_text": "x"}], "test.csv line 1, the header, lacks the column id"),
    ],
)
def test_labels_that_do_not_fit_their_texts(folder, file, records, message):
    for name, rows in (KAGGLE | {file: records}).items():
        (folder / name).write_bytes(as_csv(rows))
    with pytest.raises(UserError, match=message):
        load_raw_rows(data_params(**JIGSAW))


def test_without_a_file_of_labels_they_stand_with_the_texts(folder):
    write(folder, [{**record, "id": 1} for record in RECORDS])
    assert load_rows(data_params(columns={"id": "id"}), "train")[0] == rows_of(RECORDS)
    (folder / "train_labels.jsonl").write_text(json.dumps({"id": 1, "label": 0}) + "\n")
    (folder / "train_labels.csv").write_bytes(FORMS[".csv"]([{"id": 1, "label": 0}]))
    with pytest.raises(UserError, match="has train_labels.jsonl and train_labels.csv; keep one"):
        load_rows(data_params(columns={"id": "id"}), "train")
