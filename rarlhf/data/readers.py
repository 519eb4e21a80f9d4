"""Records of a data file, read one by one; whatever is wrong with the file gives one clear error."""

import csv
import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from rarlhf.config.errors import UserError

Record = Mapping[str, Any]
Located = tuple[str, Record]  # place of the record, as in "train.csv line 3", and its columns by name


class _Missing:
    """Result of `field_of` if there is no such field."""


MISSING = _Missing()


def field_of(record: Record, name: str) -> Any:
    """The value of a field or of a nested field, as in `prompt.text`; MISSING if there is none."""
    if name in record:
        return record[name]
    value: Any = record
    for part in name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return MISSING
        value = value[part]
    return value


def read_records(path: Path, columns: Sequence[str]) -> Iterator[Located]:
    """Yields the records of a data file in its order.

    Args:
        path: a file with an ending of `READERS`.
        columns: names that the records must have; further names are allowed.
    Raises: UserError if the file cannot be read, is no text in UTF-8, is truncated or broken, or lacks a column.
    """
    reader = next(READERS[ending] for ending in READERS if path.name.endswith(ending))
    try:
        yield from reader(path, columns)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path} is a truncated or damaged gzip file: fetch or write it again") from error
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror or error}): check the file and its permissions"
        ) from error


def _read_jsonl(path: Path, columns: Sequence[str]) -> Iterator[Located]:
    for where, line in _lines(path):
        if line.strip():
            record = _json_object(where, line)
            _require_columns(where, record, columns)
            yield where, record


def _json_object(where: str, line: str) -> Record:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where} is not JSON ({error}): each line must be one whole JSON object") from error
    if not isinstance(record, dict):
        raise UserError(f'{where} holds no JSON object: each line must be one, as in {{"text": ..., "label": ...}}')
    return record


def _read_csv(path: Path, columns: Sequence[str]) -> Iterator[Located]:
    reader = csv.reader((line for _, line in _lines(path)), strict=True)
    try:
        header = next(reader, [])
        if header:
            _require_columns(f"{path} line 1, the header,", header, columns)
        for values in reader:
            where = f"{path} line {reader.line_num}"
            if len(values) == len(header):
                yield where, dict(zip(header, values, strict=True))
            elif values:  # a blank line has none
                raise UserError(
                    f"{where} has {len(values)} values, the header {len(header)}: quote texts that hold commas"
                )
    except csv.Error as error:
        raise UserError(
            f"{path} line {reader.line_num} is not CSV ({error}): mend its quotes or use JSON lines"
        ) from error


def _read_parquet(path: Path, columns: Sequence[str]) -> Iterator[Located]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            _require_columns(str(path), file.schema_arrow.names, columns)
            row = 0
            for batch in file.iter_batches(columns=list(columns)):
                for record in batch.to_pylist():
                    row += 1
                    yield f"{path} row {row}", record
    except pyarrow.ArrowException as error:
        raise UserError(
            f"{path} is not a whole parquet file ({_first_line(error)}): fetch or write it again"
        ) from error


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    with _open(path) as stream:
        for number, line in enumerate(stream, start=1):
            where = f"{path} line {number}"
            try:
                yield where, line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise UserError(f"{where} is not UTF-8 ({error.reason}): convert the file to UTF-8") from error


def _open(path: Path) -> BinaryIO:
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def _require_columns(where: str, names: Sequence[str] | Record, columns: Sequence[str]) -> None:
    lacking = lacking_columns(names, columns)
    if lacking:
        raise UserError(
            f"{where} lacks the column {', '.join(lacking)}; it has {', '.join(names)}: set data.columns to its names"
        )


def lacking_columns(names: Sequence[str] | Record, columns: Sequence[str]) -> list[str]:
    """The `columns` that a record, or the heading of a table, lacks; of nested fields the outermost counts."""
    if isinstance(names, Mapping):
        return [column for column in columns if field_of(names, column) is MISSING]
    return [column for column in columns if column not in names and column.split(".")[0] not in names]


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]


READERS: dict[str, Callable[[Path, Sequence[str]], Iterator[Located]]] = {
    ".jsonl": _read_jsonl,
    ".jsonl.gz": _read_jsonl,
    ".csv": _read_csv,
    ".csv.gz": _read_csv,
    ".parquet": _read_parquet,
}
