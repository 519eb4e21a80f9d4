"""Reads a YAML file that a person has edited, and says in one line what is wrong with it or with one of its keys."""

import re
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from rarlhf.config.errors import UserError
from rarlhf.config.escapes import one_line

MAX_BYTES = 1_000_000  # a params file has 14,000
MAX_PROBLEMS = 30  # lines of a refusal
MAX_SHOWN = 110  # characters of a value in a message
CONFLICT = re.compile(r"^(?:<{7}|\|{7}|={7}|>{7})(?: .*)?$", re.MULTILINE)  # git's marks
NAME = "the name should be lower-case letters, digits and _, begin with a letter, and have at most 40 characters"
METHODS = "is now start: [...] and ppo: {...}; presets/tiny.yaml shows the form"
KEY = "[key]"  # part that pydantic adds to the path of a mapping's key; only methods.ppo has a rule for its keys
INNER = ("function-", "constrained-", KEY)  # parts that pydantic adds to the path of a value

_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxlist, _SHORT.maxdict, _SHORT.maxtuple = 2, 6, 4, 6
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 100


def read_yaml(path: Path) -> Any:
    """Content of a YAML file: plain values, lists and mappings.

    Raises: UserError, one line, if the file is missing, no plain file, too large, not readable, or not YAML.
    """
    text = _read_text(path)
    mark = CONFLICT.search(text)
    if mark:
        number = text.count("\n", 0, mark.start()) + 1
        raise UserError(
            f"{path} is not readable as YAML: line {number} is a mark of a merge conflict ({one_line(mark[0])[:40]}): "
            "keep one of the two versions and delete the marks"
        )
    try:
        return deepcopy(_values(text))
    except Exception as error:  # odd numbers, dates and tags raise errors of many classes
        raise unreadable(path, error) from error


@lru_cache(maxsize=32)  # one process often reads the same file again, which takes 0.07 s
def _values(text: str) -> Any:
    return YAML(typ="safe", pure=True).load(text)


def unreadable(path: Path, error: Exception) -> UserError:
    """The refusal of a file that the YAML reader does not read: the place and the reader's complaint, in one line."""
    deep = isinstance(error, RecursionError)
    reason = "its brackets or sections nest too deep" if deep else _reason(error)
    return UserError(f"{path} is not readable as YAML: {reason}")


def shown(value: object) -> str:
    """A value for a message; long, deep and circular values are cut short."""
    try:
        text = _SHORT.repr(value)
    except ValueError:  # Python writes no whole number of more than 4,300 digits
        text = f"a {type(value).__name__} of too many digits"
    return text if len(text) <= MAX_SHOWN else f"{text[:50]}...{text[-50:]}"


def listed(path: Path, problems: Sequence[str]) -> str:
    """The message for all problems of a file: a heading, then one line for each."""
    lines = list(problems[:MAX_PROBLEMS])
    if len(problems) > MAX_PROBLEMS:
        lines.append(f"  and {len(problems) - MAX_PROBLEMS:,} more")
    return f"{path}: {len(problems)} problem{'s' if len(problems) > 1 else ''}:\n" + "\n".join(lines)


def describe(detail: Mapping[str, Any], known: Iterable[str]) -> str:
    """One line for one pydantic error: key, value, rule.

    Args:
        detail: one of `ValidationError.errors()`.
        known: all valid dotted keys, to suggest one for a misspelt key.
    """
    key = one_line(".".join(str(part) for part in detail["loc"] if not str(part).startswith(INNER)))[:100]
    if detail["type"] == "extra_forbidden":
        return f"  {key}: unknown key{_nearest(key, known)}"
    if detail["type"] == "missing":
        return f"  {key}: missing; presets/tiny.yaml shows it with its unit and range"
    if detail["loc"][-1] == KEY:
        return f"  {key}: {NAME}"
    return f"  {key} = {shown(detail['input'])}: {_rule(detail)}"


def _rule(detail: Mapping[str, Any]) -> str:
    kind, context = detail["type"], detail.get("ctx", {})
    if detail["loc"] == ("methods",) and isinstance(detail["input"], list | str):
        return METHODS
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return "should be a section, with keys of its own below it"
    if kind == "list_type":
        return "should be a list, as in [1, 2, 3]"
    if kind == "too_short":
        return f"should have at least {context['min_length']} item{'s' if context['min_length'] > 1 else ''}"
    if kind == "too_long":
        return f"should have at most {context['max_length']} items"
    return re.sub(r"^(?:Input|String) should", "should", str(detail["msg"]))


def _read_text(path: Path) -> str:
    if path.is_dir():
        raise UserError(f"{path} is a folder, not a file: move it away, then cp presets/tiny.yaml {path}")
    if not path.exists():
        raise UserError(
            f"{path} is missing: copy a preset over it (cp presets/tiny.yaml {path}), or run from its folder"
        )
    if not path.is_file():
        raise UserError(f"{path} is not a plain file: move it away, then cp presets/tiny.yaml {path}")
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{path} has more than {MAX_BYTES:,} bytes, so it is no params file; copy a preset over it")
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check its permissions") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path} is not readable as YAML: line {line} is not UTF-8 ({error.reason}); save it as UTF-8"
        ) from error


def _reason(error: Exception) -> str:
    """The YAML reader's complaint and its place, in one line."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    said = getattr(error, "problem", None) or str(error) or type(error).__name__
    where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    return where + one_line(" ".join(str(said).split()))[:200]


def _nearest(key: str, known: Iterable[str]) -> str:
    close = get_close_matches(key, list(known), n=1, cutoff=0.7)
    return f"; did you mean {close[0]}?" if close else ""
