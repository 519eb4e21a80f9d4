"""JSON, JSON lines and CSV as this project writes them: UTF-8, keys in the order given, equal bytes for equal data."""

import csv
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rarlhf.config.errors import UserError


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Reads a file of `write_jsonl`: one JSON object a line."""
    with path.open(encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]


def write_jsonl(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Writes one JSON object a line, without holding them all in memory."""
    with path.open("w", encoding="utf-8", newline="\n") as stream:
        for record in records:
            stream.write(json.dumps(record, ensure_ascii=False) + "\n")


def files_hash(folder: Path, files: Iterable[Path]) -> str:
    """SHA-256 of the names of files below a folder and of what is in them, in the given order."""
    total = hashlib.sha256()
    for path in files:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        total.update(f"{path.relative_to(folder).as_posix()} {digest}\n".encode())
    return total.hexdigest()


def write_json(path: Path, data: object) -> None:
    """Writes one JSON document, indented by two spaces."""
    path.write_text(json.dumps(data, ensure_ascii=False, indent=2) + "\n", encoding="utf-8", newline="\n")


def write_curve(rows: Sequence[Mapping[str, float]], path: Path) -> None:
    """Writes a curve as CSV, one row per logged step; an empty curve gets the columns of a supervised training."""
    columns = list(rows[0]) if rows else ["step", "loss", "lr"]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


@contextmanager
def replaced(target: Path) -> Iterator[Path]:
    """A path to write to; the file then takes the place of `target` in one step: a reader sees the old or the new.

    The file is synchronised to the disk first. After a failure `target` is unchanged. Leftovers of a killed process are
    deleted.
    """
    with _beside(target) as folder:  # a folder, because libraries write under further names of their own
        partial = folder / target.name
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, target)


@contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """An empty folder beside `target`, which is deleted at the end."""
    partial = target.with_name(f".{target.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)  # of a killed process
        partial.mkdir(parents=True)
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def whole(out: Path) -> Iterator[Path]:
    """Yields a folder to write to, which becomes `out` at the end; after a failure nothing is left of it.

    Raises: UserError if it cannot be written, for example because the disk is full.
    """
    from safetensors import SafetensorError

    target = out.absolute()
    try:
        with _beside(target) as partial:
            yield partial
            os.replace(partial, target)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"{out} could not be written ({reason}); what was written of it is deleted. Free some space there, or name "
            "a folder where you may write"
        ) from error
