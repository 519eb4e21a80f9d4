"""The tiny preset with edits, as values and as a file, and how such values are refused.

Most tests check values without a file, since to read one takes longer than all checks of it.
"""

from collections.abc import Iterator
from copy import deepcopy
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from rarlhf.config.errors import UserError
from rarlhf.config.load import checked, load_params
from rarlhf.config.params import Params

REPOSITORY = Path(__file__).parents[3]
TINY = (REPOSITORY / "presets" / "tiny.yaml").read_text(encoding="utf-8")
MISSING = object()
Edits = dict[str, Any]


def plain(text: str) -> dict[str, Any]:
    """The values of a YAML text, for the caller to change."""
    return deepcopy(_read(text))


@cache
def _read(text: str) -> dict[str, Any]:
    return YAML(typ="safe", pure=True).load(text)


def leaves(section: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in section.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def edited(values: dict[str, Any], edits: Edits) -> dict[str, Any]:
    """`values` with the dotted keys of `edits` set, or taken out where MISSING."""
    for key, value in edits.items():
        *path, name = key.split(".")
        section = values
        for part in path:
            section = section[part]
        if value is MISSING:
            del section[name]
        else:
            section[name] = value
    return values


def tiny(edits: Edits) -> dict[str, Any]:
    """New values of the tiny preset with edits, with keys in order, as `write` leaves them."""
    return _in_order(edited(plain(TINY), edits))


def _in_order(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _in_order(value[key]) for key in sorted(value)}
    return [_in_order(item) for item in value] if isinstance(value, list) else value


def accepted(edits: Edits) -> Params:
    """The params of the tiny preset with edits."""
    return checked(tiny(edits), Path("params.yaml"))


def refusal(edits: Edits) -> list[str]:
    """The lines of the refusal of the tiny preset with edits, after the first."""
    with pytest.raises(UserError) as caught:
        accepted(edits)
    return _lines(caught.value, Path("params.yaml"))


def write(folder: Path, edits: Edits) -> Path:
    """The tiny preset with edits, as a params file in `folder`."""
    stream = StringIO()
    YAML(typ="safe", pure=True).dump(tiny(edits), stream)
    path = folder / "params.yaml"
    path.write_text(stream.getvalue(), encoding="utf-8")
    return path


def refusal_of_file(folder: Path, edits: Edits) -> list[str]:
    """As `refusal`, of a file."""
    path = write(folder, edits)
    with pytest.raises(UserError) as caught:
        load_params(path)
    return _lines(caught.value, path)


def _lines(error: UserError, path: Path) -> list[str]:
    first, *lines = str(error).splitlines()
    assert first == f"{path}: {len(lines)} problem{'s' if len(lines) > 1 else ''}:"
    return [line.strip() for line in lines]
