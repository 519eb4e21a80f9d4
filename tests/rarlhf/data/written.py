"""Files of rows as users have them, in every form, and the params that name them."""

import csv
import gzip
import io
import json
from pathlib import Path

from rarlhf.config.load import load_params
from rarlhf.data.rows import Row

TINY = Path(__file__).parents[3] / "presets" / "tiny.yaml"
RECORDS = [{"text": f'row {index}, "said"\nagain', "label": index % 2} for index in range(10)]
TEST_RECORDS = [{"text": f"test {index}", "label": index % 2} for index in range(6)]


def data_params(**changes):
    """Section `data` of the tiny preset, read from files, with all rows, and with these changes."""
    base = load_params(TINY).data
    columns = base.columns.model_copy(update=changes.pop("columns", {}))
    defaults = {"source": "file", "path": "rows", "train_rows": None, "test_rows": None, "second_scorer_rows": 0}
    return base.model_copy(update={**defaults, "columns": columns, **changes})


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
