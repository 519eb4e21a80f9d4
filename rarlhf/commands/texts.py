"""The texts of a command: arguments, lines of a file, or lines of standard input."""

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rarlhf.config.errors import UserError

STDIN = "standard input"
Fields = Sequence[tuple[str, ...]]  # alternatives, in order; an alternative of several fields joins their texts


class Given(NamedTuple):
    """One text and the record that held it."""

    text: str
    record: Mapping[str, Any]  # the fields of a JSON line; otherwise only the text


def given_texts(arguments: Sequence[str], file: Path | None, name: str, fields: Fields) -> list[Given]:
    """The texts of a command line: its arguments, or else those in `file`, or else those on standard input.

    A file whose name ends in .jsonl holds one JSON object a line, any other file one text a line. Standard input is
    read as JSON lines if its first line is a JSON object.

    Args:
        arguments: texts given as arguments.
        file: file to read if there are no arguments; None: standard input.
        name: what messages call a text, and its field in the record of a text without one.
        fields: where in a JSON object the text is.
    Raises: UserError if there is no text, a text is blank, or the input has another form.
    """
    if arguments:
        located = [(f"{name} {number}", text) for number, text in enumerate(arguments, start=1)]
        texts = [(where, Given(text, {name: text})) for where, text in located]
    else:
        texts = list(_read(file, name, fields))
    if not texts:
        raise UserError(f"{file or STDIN} is empty: there must be one {name} a line")
    for where, given in texts:
        if not given.text.strip():
            raise UserError(f"{where} is empty; leave it out or write a {name}")
        if not _is_unicode(given):
            raise UserError(f"{where} has bytes or escapes that are no character: write it in UTF-8")
    return [given for _, given in texts]


def _is_unicode(given: Given) -> bool:
    """Whether all of it can be written as UTF-8; a lone surrogate, which Python uses for a wrong byte, cannot."""
    try:
        json.dumps([given.text, given.record], ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _read(file: Path | None, name: str, fields: Fields) -> Iterator[tuple[str, Given]]:
    if file is None:
        if sys.stdin is None:  # as under `<&-`
            raise UserError(f"{STDIN} is closed: give a {name} as an argument, by --file or by a pipe")
        lines = list(_decoded(sys.stdin.buffer, STDIN))
        json_lines = bool(lines) and _is_object(lines[0][1])
    else:
        lines = _lines_of(file)
        json_lines = file.name.endswith(".jsonl")
    for where, line in lines:
        if not json_lines:
            yield where, Given(line, {name: line})
        elif line.strip():
            yield where, _from_json(where, line, fields)


def _lines_of(file: Path) -> list[tuple[str, str]]:
    try:
        with file.open("rb") as stream:
            return list(_decoded(stream, str(file)))
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}): check its name and permissions") from error


def _decoded(stream: Iterable[bytes], source: str) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(stream, start=1):
        where = f"{source} line {number}"
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{where} is not UTF-8 ({error.reason}): convert it to UTF-8") from error
        yield where, text.rstrip("\r\n")


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _from_json(where: str, line: str, fields: Fields) -> Given:
    if not _is_object(line):
        raise UserError(f"{where} is not a JSON object: each line must be one, with {_names(fields)}")
    record = json.loads(line)
    for names in fields:
        if all(name in record for name in names):
            break
    else:
        raise UserError(f"{where} lacks {_names(fields)}; it has {', '.join(record) or 'no field'}")
    if not all(isinstance(record[name], str) for name in names):
        raise UserError(f"{where}: {' and '.join(names)} must be text")
    return Given("".join(record[name] for name in names), record)


def _names(fields: Fields) -> str:
    return " or ".join(" and ".join(names) for names in fields)
