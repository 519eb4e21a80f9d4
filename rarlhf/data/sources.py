"""The rows of a run from the generator, from files or from the hub, in one form for all sources.

Whatever a source calls its classes, a row's label is 1 for the wanted class. Nothing is dropped without being counted
under its reason.
"""

import hashlib
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from rarlhf.config.errors import UserError
from rarlhf.config.params import ColumnParams, DataParams
from rarlhf.data.choice import choose, choose_with_share, part_of_each_class
from rarlhf.data.hub import hub_origin, hub_records
from rarlhf.data.readers import MISSING, READERS, Located, Record, field_of, read_records
from rarlhf.data.rows import Row
from rarlhf.data.world import generate_rows

Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = ("train", "test")

EMPTY = "empty text"
EMPTY_PROMPT = "empty prompt"
OVERLAP = "text also in test"
NOT_CHOSEN = "beyond the number asked for"
NO_LABEL = "no label"
SHORT = "shorter than {} characters"
TO_TEST = "made test rows"
OTHER_SHARE = "beyond the class share or number asked for"
SECOND_SCORER = "kept back for the second scorer"


@dataclass
class Counts:
    """How many rows of a split were read and used, and why the others were not."""

    read: int = 0
    used: int = 0
    dropped: Counter[str] = field(default_factory=Counter)

    def record(self) -> dict[str, Any]:
        """As a JSON object."""
        return {"read": self.read, "used": self.used, "dropped": dict(sorted(self.dropped.items()))}

    def drop(self, reason: str, number: int) -> None:
        """Counts rows as dropped instead of used; a reason without rows is not listed."""
        self.used -= number
        if number:
            self.dropped[reason] += number


@dataclass(frozen=True)
class RawRows:
    """Content of what stage `download` writes. No text of `train` or `second_scorer` is in `test`."""

    train: list[Row]
    test: list[Row]
    second_scorer: list[Row]  # kept back from `train`
    counts: dict[Split, Counts]
    origin: dict[str, str] | None = None  # name and commit of a hub data set, as a JSON object


def load_raw_rows(data: DataParams) -> RawRows:
    """Loads both splits, keeps them apart, and chooses the number of rows asked for.

    The choice is drawn with `data.seed` and keeps the source's order.

    Raises: UserError if the source cannot be read, or what is left lacks rows or a class.
    """
    train, test, counts = _both_splits(data)
    test_texts = {row.text for row in test}
    apart = [row for row in train if row.text not in test_texts]
    counts["train"].drop(OVERLAP, len(train) - len(apart))
    test = _chosen(test, data.test_rows, data.wanted_share.test, f"test/{data.seed}", counts["test"])
    train = _chosen(apart, data.train_rows, data.wanted_share.train, f"train/{data.seed}", counts["train"])
    keep = max(len(train) - data.second_scorer_rows, 0)
    train, second_scorer = choose(train, keep, f"second_scorer/{data.seed}")
    counts["train"].drop(SECOND_SCORER, len(second_scorer))
    for rows, name in ((train, "train"), (test, "test")):
        _require_classes(rows, f"what is left of the {name} rows")
    origin = hub_origin(data) if data.source == "hub" else None
    return RawRows(train, test, second_scorer, counts, origin)


def _both_splits(data: DataParams) -> tuple[list[Row], list[Row], dict[Split, Counts]]:
    """Train and test rows with their counts; `data.test_share` makes test rows of the training split."""
    train, counts = load_rows(data, "train")
    if data.test_share is None:
        test, test_counts = load_rows(data, "test")
    else:
        test, train = part_of_each_class(train, data.test_share, f"split/{data.seed}")
        counts.drop(TO_TEST, len(test))
        test_counts = Counts(len(test), len(test))
    return train, test, {"train": counts, "test": test_counts}


def _chosen(rows: list[Row], number: int | None, share: float | None, seed: str, counts: Counts) -> list[Row]:
    if share is None:
        chosen, others = choose(rows, number, seed)
    else:
        chosen, others = choose_with_share(rows, number, share, seed)
    counts.drop(NOT_CHOSEN if share is None else OTHER_SHARE, len(others))
    return chosen


def load_rows(data: DataParams, split: Split) -> tuple[list[Row], Counts]:
    """Loads the rows of one split that can be used, in the source's order.

    Raises: UserError if the source cannot be read, has no rows, a bad row, or not exactly two labels.
    """
    if data.source == "generator":
        count = data.train_rows if split == "train" else data.test_rows
        if count is None:
            raise UserError(f"data.{split}_rows is null: source generator needs a number")
        rows = generate_rows(count, f"generator/{split}/{data.seed}")
        if data.columns.label is None:
            rows = [replace(row, label=None) for row in rows]
        return rows, Counts(count, count)
    if data.source == "file":
        return _rows_of(_file_records(data, split), data, str(data_file(data, split)))
    name = getattr(data.splits, split)
    return _rows_of(hub_records(data, name, _columns(data.columns)), data, f"{data.name} split {name}")


def fingerprint(data: DataParams) -> dict[str, Any]:
    """A fingerprint of the rows' source, which changes with the content.

    Returns: a JSON object without machine paths; for source `file` the SHA-256 of each file, in hexadecimal.
    Raises: UserError if a data file is missing or cannot be read.
    """
    if data.source == "generator":
        return {"source": "generator"}
    if data.source == "hub":
        return {"source": "hub", "name": data.name, "config": data.config, "revision": data.revision}
    splits = SPLITS if data.test_share is None else SPLITS[:1]
    paths = [path for split in splits for path in (data_file(data, split), _labels_file(data, split)) if path]
    return {"source": "file", "files": {path.name: _sha256(path) for path in paths}}


def data_file(data: DataParams, split: Split) -> Path:
    """The one data file of a split in the folder `data.path`.

    A relative folder starts at the repository's root, and at the main repository's in a copy that DVC works in.

    Raises: UserError if the folder, or a file for the split, is missing, or there are several.
    """
    folder = _folder(data)
    if folder.is_file():
        return _single_file(folder, data)
    found = _files_named(folder, split)
    if found is None:
        forms = ", ".join(f"{split}{ending}" for ending in READERS)
        share = "" if split == "train" else "; or set data.test_share, the share of the training rows to test on"
        raise UserError(f"data.path: {folder} has no {split} file; put one of {forms} there{share}")
    return found


def _single_file(path: Path, data: DataParams) -> Path:
    if not path.name.endswith(tuple(READERS)):
        raise UserError(f"data.path: {path} is of no known form; its name must end as one of {', '.join(READERS)}")
    if data.test_share is None:
        raise UserError(
            f"data.path: {path} is a single file: set data.test_share, the share of its rows to test on, or give a "
            "folder with train.* and test.*"
        )
    return path


def _labels_file(data: DataParams, split: Split) -> Path | None:
    """The file with the labels of a split's rows by `data.columns.id`; None if the labels are beside the texts."""
    given = data.columns.id is not None and data.columns.label is not None
    return _files_named(_folder(data), f"{split}_labels") if given else None


def _folder(data: DataParams) -> Path:
    if data.path is None:
        raise UserError("data.path is null: source file needs the folder that holds train.jsonl and test.jsonl")
    folder = Path(os.environ.get("DVC_ROOT", "."), data.path)
    if not folder.exists():
        raise UserError(f"data.path: there is no folder {folder}; a relative path starts at the repository's root")
    return folder


def _files_named(folder: Path, stem: str) -> Path | None:
    """The one file of this name with a known ending; None if there is none."""
    found = [folder / f"{stem}{ending}" for ending in READERS if (folder / f"{stem}{ending}").exists()]
    if len(found) > 1:
        names = " and ".join(path.name for path in found)
        raise UserError(f"data.path: {folder} has {names}; keep one, it is not clear which is meant")
    return found[0] if found else None


def _file_records(data: DataParams, split: Split) -> Iterator[Located]:
    """The records of a split's file, with labels from its labels file if there is one."""
    path, labels_path, columns = data_file(data, split), _labels_file(data, split), data.columns
    if labels_path is None:
        yield from read_records(path, _columns(columns))
        return
    key, column, labels = str(columns.id), str(columns.label), {}
    for _, record in read_records(labels_path, [key, column]):
        labels[str(field_of(record, key))] = field_of(record, column)
    for where, record in read_records(path, [key, *(name for name in _columns(columns) if name != column)]):
        value = str(field_of(record, key))
        if value not in labels:
            raise UserError(f"{where}: {labels_path.name} has no row with {key} {value!r}; fetch both files anew")
        yield where, {**record, column: labels[value]}


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check the file and its permissions") from error


def _columns(columns: ColumnParams) -> list[str]:
    named = (columns.text, columns.label, columns.prompt, columns.toxicity)
    return [column for column in named if column is not None]


def _rows_of(records: Iterable[Located], data: DataParams, source: str) -> tuple[list[Row], Counts]:
    counts, rows = Counts(), []
    labels = None if data.columns.label is None else _Labels(data, data.columns.label, source)
    for where, record in records:
        row = _row_of(where, record, data.columns, labels)
        counts.read += 1
        counts.used += 1
        reason = NO_LABEL if row is None else _unusable(row, data.min_chars)
        if row is None or reason:
            counts.drop(reason, 1)
        else:
            rows.append(row)
    if not counts.read:
        raise UserError(f"{source} holds no rows: give a file with texts")
    if labels is not None:
        labels.require_both()
    _require_classes(rows, f"{source}, without its empty rows,")
    return rows, counts


def _unusable(row: Row, min_chars: int) -> str:
    """Why a row is dropped; empty if it is kept."""
    if not row.text.strip():
        return EMPTY
    if row.prompt is not None and not row.prompt.strip():
        return EMPTY_PROMPT
    return SHORT.format(min_chars) if len(row.text) < min_chars else ""


def _row_of(where: str, record: Record, columns: ColumnParams, labels: "_Labels | None") -> Row | None:
    """The row of a record; None if it lacks the label that others have."""
    prompt = None if columns.prompt is None else _text(where, record, columns.prompt)
    toxicity = None if columns.toxicity is None else _number(where, record, columns.toxicity)
    text = _text(where, record, columns.text or str(columns.prompt))  # prompts alone: params.yaml has one of the two
    label = None if labels is None else labels.read(where, record)
    return None if labels is not None and label is None else Row(text, label, prompt, toxicity)


def _value(where: str, record: Record, column: str) -> Any:
    value = field_of(record, column)
    if value is MISSING:
        raise UserError(f"{where} lacks the field {column}; set data.columns to the names there are, or mend the row")
    return value


def _text(where: str, record: Record, column: str) -> str:
    text = _value(where, record, column)
    if not isinstance(text, str):
        raise UserError(f"{where}: column {column} holds {text!r}, which is no text; mend or remove the row")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(f"{where}: column {column} holds half a character ({error.reason}); mend the text") from error
    return text


def _number(where: str, record: Record, column: str) -> float | None:
    """The number in a column; None if the column is empty."""
    return _as_number(where, column, _value(where, record, column))


def _as_number(where: str, column: str, value: object) -> float | None:
    if value is None or value == "":
        return None
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise UserError(
            f"{where}: column {column} holds {value!r}, which is no number; mend it or leave it empty"
        ) from None
    return None if math.isnan(number) else number


class _Labels:
    """Reads the label column of one split: exactly two classes, one of which is `data.positive_label`.

    A row may also have none, where its value is one of `data.no_label`.
    """

    def __init__(self, data: DataParams, column: str, source: str) -> None:
        self._column, self._source = column, source
        self._positive = _label_key(data.positive_label)
        self._positive_as_given = data.positive_label
        self._none = {_label_key(value) for value in data.no_label if value is not None}
        self._empty_is_none = None in data.no_label
        self._above = data.label_above
        self._seen: list[str] = []

    def read(self, where: str, record: Record) -> int | None:
        value = _value(where, record, self._column)
        key = _label_key(value)
        if key in self._none or (self._empty_is_none and _is_empty(value)):
            return None
        if self._above is not None:
            number = _as_number(where, self._column, value)
            key = None if number is None else str(int(number > self._above))
        if key is None:
            raise UserError(
                f"{where}: column {self._column} holds {value!r}, which names no class; mend or remove the row"
            )
        if key not in self._seen:
            self._seen.append(key)
        if len(set(self._seen) - {self._positive}) > 1:
            known = ", ".join(self._seen[:-1])
            raise UserError(
                f"{where}: column {self._column} holds {value!r} besides {known} and data.positive_label "
                f"{self._positive_as_given!r}; there must be two classes"
            )
        return int(key == self._positive)

    def require_both(self) -> None:
        if self._positive not in self._seen:
            raise UserError(
                f"{self._source}: no row has the label {self._positive_as_given!r} (data.positive_label), all have "
                f"{self._seen[0]}; set data.positive_label, or add rows of the wanted class"
            )
        if len(self._seen) == 1:
            raise UserError(f"{self._source}: all rows have the label {self._seen[0]}; add rows of the other class")


def _is_empty(value: object) -> bool:
    if isinstance(value, float):
        return math.isnan(value)
    return value is None or (isinstance(value, str) and not value.strip())


def _label_key(value: object) -> str | None:
    """One spelling for each class: 1, 1.0, True, "1" and "true" are the same; None if the value is no class."""
    if isinstance(value, str):
        text = value.strip()
        named = {"true": "1", "false": "0"}.get(text.lower(), text)
        return (_whole_number(named) or named) if named else None
    return _whole_number(value) if isinstance(value, int | float) else None


def _whole_number(value: str | float) -> str | None:
    try:
        number = float(value)
    except ValueError:
        return None
    return str(int(number)) if number.is_integer() else None


def _require_classes(rows: list[Row], name: str) -> None:
    """Whether there are rows of both classes, or any rows if they have no labels."""
    labels = {row.label for row in rows}
    if not labels:
        raise UserError(f"{name} has no rows; give more rows or raise the number of rows")
    if None not in labels and len(labels) < 2:
        raise UserError(f"{name} has {len(rows)} rows and not both classes; give more rows or raise the number of rows")
