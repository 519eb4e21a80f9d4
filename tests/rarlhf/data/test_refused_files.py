"""Whatever is wrong with a folder or a file of rows gives one clear line."""

import gzip
import hashlib
import io

import pytest

from rarlhf.config.errors import UserError
from rarlhf.data.sources import load_raw_rows, load_rows
from tests.rarlhf.data.written import FORMS, RECORDS, as_parquet, data_params, jsonl, write

pytestmark = pytest.mark.usefixtures("folder")


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
