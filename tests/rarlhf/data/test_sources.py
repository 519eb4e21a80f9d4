"""The three sources give the same rows."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rarlhf.config.errors import UserError
from rarlhf.data.rows import Row
from rarlhf.data.sources import EMPTY, EMPTY_PROMPT, NOT_CHOSEN, OVERLAP, fingerprint, load_raw_rows, load_rows
from rarlhf.data.world import generate_rows
from tests.rarlhf.data.written import FORMS, RECORDS, TEST_RECORDS, as_csv, data_params, jsonl, rows_of, write

pytestmark = pytest.mark.usefixtures("folder")
SHARED = Path(__file__).parents[4] / "shared" / "data"


# --- the same rows from every source and form


@pytest.mark.parametrize("ending", FORMS)
def test_every_form_gives_the_same_rows(folder, ending):
    write(folder, ending=ending)
    raw = load_raw_rows(data_params())
    assert raw.train == rows_of(RECORDS)
    assert raw.test == rows_of(TEST_RECORDS)
    assert raw.counts["train"].record() == {"read": 10, "used": 10, "dropped": {}}


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".parquet"])
def test_columns_are_mapped(folder, ending):
    records = [
        {"body": "a b", "class": "pos", "start": "a", "tox": 0.25, "other": "x"},
        {"body": "c d", "class": "neg", "start": "c", "tox": None, "other": "y"},
    ]
    write(folder, records, ending=ending)
    columns = {"text": "body", "label": "class", "prompt": "start", "toxicity": "tox"}
    rows, _ = load_rows(data_params(columns=columns, positive_label="pos"), "train")
    assert rows == [Row("a b", 1, "a", 0.25), Row("c d", 0, "c", None)]


@pytest.mark.parametrize("positive", [1, "1", True, "true", " 1 "])
@pytest.mark.parametrize(
    ("one", "zero"), [(1, 0), ("1", "0"), (True, False), (1.0, 0.0), ("True", "False"), ("1.0", "0.0")]
)
def test_label_is_one_for_the_positive_label_however_it_is_spelt(folder, positive, one, zero):
    write(folder, [{"text": "good", "label": one}, {"text": "bad", "label": zero}])
    assert load_rows(data_params(positive_label=positive), "train")[0] == [Row("good", 1), Row("bad", 0)]


def test_the_wanted_class_may_be_zero(folder):
    write(folder)
    rows, _ = load_rows(data_params(positive_label=0), "train")
    assert [row.label for row in rows] == [1, 0] * 5


def test_byte_order_mark_and_blank_lines_are_no_rows(folder):
    write(folder)
    (folder / "train.jsonl").write_bytes(b"\xef\xbb\xbf" + jsonl(RECORDS[:2]) + b"\n  \n")
    assert load_rows(data_params(), "train")[0] == rows_of(RECORDS[:2])
    (folder / "train.jsonl").unlink()
    (folder / "train.csv").write_bytes(b"\xef\xbb\xbf" + as_csv(RECORDS[:2]) + b"\n")
    assert load_rows(data_params(), "train")[0] == rows_of(RECORDS[:2])


def test_not_a_number_is_no_toxicity(folder):
    (folder / "train.csv").write_text("text,label,tox\na,1,nan\nb,0,\nc,0,0.5\n")
    rows, _ = load_rows(data_params(columns={"toxicity": "tox"}), "train")
    assert [row.toxicity for row in rows] == [None, None, 0.5]


def test_generator():
    data = data_params(source="generator", train_rows=40, test_rows=30, second_scorer_rows=5)
    raw = load_raw_rows(data)
    assert (len(raw.train), len(raw.test), len(raw.second_scorer)) == (35, 30, 5)
    assert raw.test == generate_rows(30, f"generator/test/{data.seed}")
    assert not {row.text for row in raw.train} & {row.text for row in raw.test}
    assert load_raw_rows(data) == raw
    assert load_raw_rows(data.model_copy(update={"seed": 21})).test != raw.test


def test_generator_needs_a_number():
    with pytest.raises(UserError, match=r"data\.test_rows is null: source generator needs a number"):
        load_rows(data_params(source="generator", train_rows=5), "test")


HUB = {"source": "hub", "name": "owner/reviews", "config": "plain", "revision": "abc"}


# --- dropping and choosing, all counted


def test_empty_rows_are_dropped_and_counted(folder):
    records = [*RECORDS, {"text": "", "label": 1}, {"text": " \n", "label": 0}]
    write(folder, [{**record, "start": "r"} for record in records] + [{"text": "x", "label": 1, "start": " "}])
    rows, counts = load_rows(data_params(columns={"prompt": "start"}), "train")
    assert len(rows) == 10
    assert counts.record() == {"read": 13, "used": 10, "dropped": {EMPTY_PROMPT: 1, EMPTY: 2}}


def test_train_rows_whose_text_is_in_test_are_dropped(folder):
    write(folder, [*RECORDS, *TEST_RECORDS[:3]])
    raw = load_raw_rows(data_params(test_rows=4))  # also those of test rows that are not chosen
    assert raw.train == rows_of(RECORDS)
    assert raw.counts["train"].record() == {"read": 13, "used": 10, "dropped": {OVERLAP: 3}}
    assert raw.counts["test"].record() == {"read": 6, "used": 4, "dropped": {NOT_CHOSEN: 2}}


def test_rows_need_no_label(folder):
    write(folder)
    rows = load_raw_rows(data_params(columns={"label": None}))
    assert {row.label for row in (*rows.train, *rows.test)} == {None}
    assert all("label" not in row.record() for row in rows.train)
    labelled = load_raw_rows(data_params(second_scorer_rows=0))
    assert [row.text for row in rows.train] == [row.text for row in labelled.train]


def test_prompts_alone_are_rows(folder):
    (folder / "train.jsonl").write_bytes(jsonl([{"question": f"why {i} ?"} for i in range(8)]))
    (folder / "test.jsonl").write_bytes(jsonl([{"question": "how ?"}, {"question": " "}]))
    alone = {"text": None, "label": None, "prompt": "question"}
    rows = load_raw_rows(data_params(columns=alone))
    assert rows.test == [Row("how ?", None, "how ?")]
    assert len(rows.train) == 8
    assert rows.counts["test"].record()["dropped"] == {"empty text": 1}


def test_one_file_is_parted_by_a_share(folder, tmp_path):
    records = [{"text": f"text {i}"} for i in range(20)]
    (folder / "train.jsonl").write_bytes(jsonl([*records, records[0], records[1]]))
    share = data_params(test_share=0.3, columns={"label": None})
    rows = load_raw_rows(share)
    assert len(rows.test) == 7  # of 22
    texts = [{row.text for row in part} for part in (rows.train, rows.test)]
    assert not texts[0] & texts[1]  # a text that is there twice is on one side
    assert texts[0] | texts[1] == {record["text"] for record in records}
    single = tmp_path / "my.jsonl"
    (folder / "train.jsonl").rename(single)
    one = data_params(path="my.jsonl", test_share=0.3, columns={"label": None})
    assert load_raw_rows(one) == rows
    assert fingerprint(one)["files"].keys() == {"my.jsonl"}
    with pytest.raises(UserError, match=r"my\.jsonl is a single file: set data\.test_share"):
        load_raw_rows(data_params(path="my.jsonl"))
    single.rename(tmp_path / "my.txt")
    with pytest.raises(UserError, match=r"my\.txt is of no known form; its name must end as one of \.jsonl"):
        load_raw_rows(data_params(path="my.txt", test_share=0.3))


def test_a_lacking_test_file_may_be_a_share(folder):
    write(folder)
    (folder / "test.jsonl").unlink()
    with pytest.raises(UserError, match=r"has no test file; .*or set data\.test_share"):
        load_raw_rows(data_params())


def test_choice_is_seeded_and_keeps_the_order(folder):
    records = [{"text": f"row {index}", "label": index % 2} for index in range(100)]
    write(folder, records)
    chosen = load_raw_rows(data_params(train_rows=30)).train
    assert chosen == load_raw_rows(data_params(train_rows=30)).train
    assert chosen != load_raw_rows(data_params(train_rows=30, seed=21)).train
    assert chosen == [row for row in rows_of(records) if row in chosen]
    assert chosen != rows_of(records[:30])
    assert len(chosen) == 30
    assert load_raw_rows(data_params(train_rows=1000)).train == rows_of(records)


def test_second_scorer_has_rows_of_its_own(folder):
    records = [{"text": f"row {index}", "label": index % 2} for index in range(100)]
    write(folder, records)
    raw = load_raw_rows(data_params(train_rows=80, second_scorer_rows=20))
    assert (len(raw.train), len(raw.second_scorer)) == (60, 20)
    assert not {row.text for row in raw.train} & {row.text for row in raw.second_scorer}
    counts = raw.counts["train"].record()
    assert counts["used"] == 60
    assert sum(counts["dropped"].values()) + counts["used"] == counts["read"]


# --- where the folder is, and its fingerprint


def test_relative_path_means_the_main_repository(folder, tmp_path, monkeypatch):
    write(folder)
    elsewhere = tmp_path / "temporary"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    with pytest.raises(UserError, match="no folder rows; a relative path starts at the repository's root"):
        load_raw_rows(data_params())
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    assert load_raw_rows(data_params()).train == rows_of(RECORDS)
    assert load_raw_rows(data_params(path=str(folder))).train == rows_of(RECORDS)


def test_fingerprint_is_of_the_content_and_names_no_machine_path(folder):
    write(folder)
    first = fingerprint(data_params(path=str(folder)))
    digest = hashlib.sha256(jsonl(RECORDS)).hexdigest()
    assert first["source"] == "file"
    assert list(first["files"]) == ["train.jsonl", "test.jsonl"]
    assert first["files"]["train.jsonl"] == digest
    assert str(folder) not in json.dumps(first)
    (folder / "train.jsonl").write_bytes(jsonl(RECORDS[:-1]))
    assert fingerprint(data_params()) != first


def test_fingerprint_of_the_other_sources():
    assert fingerprint(data_params(source="generator")) == {"source": "generator"}
    assert fingerprint(data_params(**HUB)) == {
        "source": "hub", "name": "owner/reviews", "config": "plain", "revision": "abc"
    }  # fmt: skip


def test_fingerprint_of_a_missing_file(folder):
    write(folder)
    (folder / "test.jsonl").unlink()
    with pytest.raises(UserError, match="has no test file"):
        fingerprint(data_params())


def test_fingerprint_of_an_unreadable_file(folder):
    (folder / "train.jsonl").mkdir()
    (folder / "test.jsonl").mkdir()
    with pytest.raises(UserError, match=r"train\.jsonl cannot be read"):
        fingerprint(data_params())


# --- real rows, and the cost of importing


@pytest.mark.parametrize(
    ("task", "train", "test", "prompted"),
    [("imdb", 24_904, 5_000, False), ("jigsaw", 8_843, 2_274, False), ("rtp", 3_680, 1_577, True)],
)
def test_real_rows(task, train, test, prompted):
    if not SHARED.is_dir():
        pytest.skip("the real rows in ../shared/data are not here")
    columns = {"prompt": "prompt", "toxicity": "toxicity"} if prompted else {}
    raw = load_raw_rows(data_params(path=str(SHARED / task), columns=columns, second_scorer_rows=100))
    assert raw.counts["train"].read == train
    assert len(raw.train) == train - 100
    assert len(raw.test) == test
    assert all(row.text.startswith(row.prompt or "") for row in raw.train)
    assert all((row.toxicity is not None) == prompted for row in raw.test)


def test_heavy_libraries_are_not_imported():
    code = (
        "import sys, rarlhf.data.sources, rarlhf.system.files, rarlhf.data.world\n"
        "heavy = {'torch', 'pandas', 'pyarrow', 'datasets', 'transformers', 'numpy'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert done.stdout.strip() == "[]"
