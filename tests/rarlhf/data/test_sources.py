"""The three sources give the same rows; whatever is wrong with a file gives one clear error."""

import csv
import gzip
import hashlib
import io
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from rarlhf.data.rows import Row
from rarlhf.data.sources import EMPTY, EMPTY_PROMPT, NOT_CHOSEN, OVERLAP, fingerprint, load_raw_rows, load_rows
from rarlhf.data.world import generate_rows
from rarlhf.errors import UserError
from rarlhf.params import load_params

TINY = Path(__file__).parents[3] / "presets" / "tiny.yaml"
SHARED = Path(__file__).parents[4] / "shared" / "data"
RECORDS = [{"text": f'row {index}, "said"\nagain', "label": index % 2} for index in range(10)]
TEST_RECORDS = [{"text": f"test {index}", "label": index % 2} for index in range(6)]


def data_params(**changes):
    """Section `data` of the tiny preset, read from files, with all rows, and with these changes."""
    base = load_params(TINY).data
    columns = base.columns.model_copy(update=changes.pop("columns", {}))
    defaults = {"source": "file", "path": "rows", "train_rows": None, "test_rows": None, "second_scorer_rows": 0}
    return base.model_copy(update={**defaults, "columns": columns, **changes})


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The folder `data.path` names, in a current directory of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    (tmp_path / "rows").mkdir()
    return tmp_path / "rows"


def jsonl(records):
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def as_csv(records):
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, list(records[0]))
    writer.writeheader()
    writer.writerows(records)
    return stream.getvalue().encode()


def as_parquet(records):
    import pyarrow
    import pyarrow.parquet

    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), sink)
    return sink.getvalue()


FORMS = {
    ".jsonl": jsonl,
    ".jsonl.gz": lambda records: gzip.compress(jsonl(records)),
    ".csv": as_csv,
    ".csv.gz": lambda records: gzip.compress(as_csv(records)),
    ".parquet": as_parquet,
}


def write(folder, records=RECORDS, test=TEST_RECORDS, ending=".jsonl"):
    (folder / f"train{ending}").write_bytes(FORMS[ending](records))
    (folder / f"test{ending}").write_bytes(FORMS[ending](test))


def rows_of(records):
    return [Row(record["text"], record["label"]) for record in records]


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


class HubRows(list):
    column_names = ("text", "label")


def hub(monkeypatch, answer):
    """Puts a `datasets` library in place that gives `answer`, or raises it, and notes how it was asked."""
    asked = []

    def load_dataset(*args, **kwargs):
        asked.append((args, kwargs))
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    return asked


HUB = {"source": "hub", "name": "owner/reviews", "config": "plain", "revision": "abc"}


def test_hub_is_asked_for_the_revision_and_gives_the_same_rows(monkeypatch):
    asked = hub(monkeypatch, HubRows(RECORDS))
    assert load_rows(data_params(**HUB), "train")[0] == rows_of(RECORDS)
    assert asked == [(("owner/reviews", "plain"), {"split": "train", "revision": "abc"})]


@pytest.mark.parametrize("error", [ConnectionError("no route\nto host"), ValueError("unknown split"), RuntimeError()])
def test_hub_without_network_points_to_a_folder(monkeypatch, error):
    hub(monkeypatch, error)
    with pytest.raises(
        UserError, match=r"owner/reviews .*revision abc.* Without network: .*data\.source: file"
    ) as caught:
        load_rows(data_params(**HUB), "train")
    assert "\n" not in str(caught.value)


def test_hub_lacks_a_column(monkeypatch):
    hub(monkeypatch, HubRows(RECORDS))
    with pytest.raises(UserError, match="owner/reviews lacks the column body; it has text, label"):
        load_rows(data_params(**HUB, columns={"text": "body"}), "train")


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


# --- bad folders and files


def refusal(folder, content, ending=".jsonl", **changes):
    """The one-line error that a training file with this content gives."""
    write(folder)
    (folder / "train.jsonl").unlink()
    (folder / f"train{ending}").write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_raw_rows(data_params(**changes))
    assert "\n" not in str(caught.value)
    assert f"train{ending}" in str(caught.value)
    return str(caught.value)


def test_no_path():
    with pytest.raises(UserError, match=r"data\.path is null"):
        load_rows(data_params(path=None), "train")


def test_missing_file_names_the_forms(folder):
    with pytest.raises(
        UserError, match=r"rows has no train file; put one of train\.jsonl, train\.jsonl\.gz, .*\.parquet"
    ):
        load_rows(data_params(), "train")


def test_two_files_of_one_split_are_ambiguous(folder):
    write(folder)
    write(folder, ending=".csv")
    with pytest.raises(UserError, match=r"has train\.jsonl and train\.csv; keep one"):
        load_rows(data_params(), "train")


@pytest.mark.parametrize("ending", FORMS)
def test_no_rows(folder, ending):
    if ending == ".parquet":
        import pyarrow
        import pyarrow.parquet

        sink = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.table({"text": [], "label": []}), sink)
        content = sink.getvalue()
    else:
        content = gzip.compress(b"") if ending.endswith(".gz") else b""
    assert "holds no rows" in refusal(folder, content, ending)


def test_header_alone(folder):
    assert "holds no rows" in refusal(folder, b"text,label\n", ".csv")


@pytest.mark.parametrize("ending", [".jsonl", ".csv"])
def test_not_utf8(folder, ending):
    content = b'text,label\n"caf\xe9",1\n' if ending == ".csv" else b'{"text": "a", "label": 1}\n{"text": "caf\xe9"}\n'
    assert f"train{ending} line 2 is not UTF-8" in refusal(folder, content, ending)


@pytest.mark.parametrize("ending", [".jsonl.gz", ".csv.gz"])
def test_truncated_gzip(folder, ending):
    records = [{"text": hashlib.sha256(str(index).encode()).hexdigest(), "label": index % 2} for index in range(500)]
    whole = FORMS[ending](records)
    assert "truncated or damaged gzip" in refusal(folder, whole[: len(whole) // 2], ending)
    assert "truncated or damaged gzip" in refusal(folder, b"not gzip at all", ending)
    assert "truncated or damaged gzip" in refusal(folder, whole[:100] + bytes(50) + whole[150:], ending)


def test_broken_parquet(folder):
    whole = as_parquet(RECORDS)
    assert "not a whole parquet file" in refusal(folder, whole[: len(whole) // 2], ".parquet")
    assert "not a whole parquet file" in refusal(folder, b"", ".parquet")


def test_unreadable_file(folder):
    write(folder)
    (folder / "train.jsonl").unlink()
    (folder / "train.jsonl").mkdir()
    with pytest.raises(UserError, match=r"train\.jsonl cannot be read \(Is a directory\)"):
        load_rows(data_params(), "train")


def test_broken_json_line(folder):
    message = refusal(folder, jsonl(RECORDS[:2]) + b'{"text": "half\n')
    assert "train.jsonl line 3 is not JSON" in message


def test_json_line_that_is_no_object(folder):
    assert "line 1 holds no JSON object" in refusal(folder, b'["a", 1]\n')


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".parquet"])
def test_column_is_lacking(folder, ending):
    message = refusal(folder, FORMS[ending](RECORDS), ending, columns={"text": "review"})
    assert "lacks the column review; it has text, label: set data.columns" in message


def test_column_is_lacking_in_one_line(folder):
    assert "line 2 lacks the column label" in refusal(folder, b'{"text": "a", "label": 1}\n{"text": "b"}\n')


def test_csv_line_with_too_many_values(folder):
    message = refusal(folder, b"text,label\na,1\nb, c,0\n", ".csv")
    assert "line 3 has 3 values, the header 2: quote texts that hold commas" in message


def test_csv_with_an_open_quote(folder):
    assert "is not CSV (unexpected end of data)" in refusal(folder, b'text,label\n"a,1\n', ".csv")


@pytest.mark.parametrize("text", [None, 3, ["a"], {"a": 1}])
def test_text_that_is_no_text(folder, text):
    message = refusal(folder, jsonl([*RECORDS, {"text": text, "label": 1}]))
    assert "train.jsonl line 11: column text holds" in message


def test_half_a_character(folder):
    assert "line 1: column text holds half a character" in refusal(folder, b'{"text": "\\ud83d", "label": 1}\n')


def test_prompt_that_is_no_text(folder):
    message = refusal(folder, jsonl([{"text": "a", "label": 1, "start": 5}]), columns={"prompt": "start"})
    assert "column start holds 5, which is no text" in message


def test_toxicity_that_is_no_number(folder):
    message = refusal(folder, jsonl([{"text": "a", "label": 1, "tox": "high"}]), columns={"toxicity": "tox"})
    assert "column tox holds 'high', which is no number" in message


@pytest.mark.parametrize("label", [None, "", " ", 0.5, [1], float("nan"), float("inf")])
def test_unreadable_label(folder, label):
    message = refusal(folder, jsonl([*RECORDS, {"text": "a", "label": label}]))
    assert "line 11: column label holds" in message
    assert "names no class" in message


def test_third_label(folder):
    message = refusal(folder, jsonl([*RECORDS, {"text": "a", "label": 2}]))
    assert "line 11: column label holds 2 besides 0, 1 and data.positive_label 1; there must be two classes" in message


def test_positive_label_that_no_row_has(folder):
    message = refusal(folder, jsonl([{"text": "a", "label": "neg"}]), positive_label="pos")
    assert "no row has the label 'pos' (data.positive_label), all have neg" in message
    message = refusal(
        folder, jsonl([{"text": "a", "label": "neg"}, {"text": "b", "label": "bad"}]), positive_label="pos"
    )
    assert "line 2: column label holds 'bad' besides neg" in message


def test_one_class_only(folder):
    assert "all rows have the label 1; add rows of the other class" in refusal(
        folder, jsonl([{"text": "a", "label": 1}])
    )


def test_one_class_only_once_empty_rows_are_gone(folder):
    message = refusal(folder, jsonl([{"text": "a", "label": 1}, {"text": "", "label": 0}]))
    assert "without its empty rows, has 1 rows and not both classes" in message


def test_one_class_only_once_rows_are_chosen(folder):
    write(folder)
    with pytest.raises(UserError, match="what is left of the train rows has 1 rows and not both classes"):
        load_raw_rows(data_params(train_rows=1))


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
        "import sys, rarlhf.data.sources, rarlhf.data.files, rarlhf.data.world\n"
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
