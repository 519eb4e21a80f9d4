"""The tiny preset with edits, as values and as a file, and how such a file is refused."""

from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from rarlhf.config.errors import UserError
from rarlhf.config.load import load_params

REPOSITORY = Path(__file__).parents[3]
TINY = (REPOSITORY / "presets" / "tiny.yaml").read_text(encoding="utf-8")
MISSING = object()
Edits = dict[str, Any]


def plain(text: str) -> dict[str, Any]:
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


def write(folder: Path, edits: Edits) -> Path:
    """The tiny preset with edits, as a params file in `folder`."""
    stream = StringIO()
    YAML(typ="safe", pure=True).dump(edited(plain(TINY), edits), stream)
    path = folder / "params.yaml"
    path.write_text(stream.getvalue(), encoding="utf-8")
    return path


def refusal(folder: Path, edits: Edits) -> list[str]:
    """The lines of the refusal, after the first."""
    path = write(folder, edits)
    with pytest.raises(UserError) as caught:
        load_params(path)
    first, *lines = str(caught.value).splitlines()
    assert first == f"{path}: {len(lines)} problem{'s' if len(lines) > 1 else ''}:"
    return [line.strip() for line in lines]
