"""Puts a preset or single values into params.yaml: `python -m tasks.preset imdb-scratch --data FOLDER`.

Values are replaced in the text, so that comments and layout stay.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import MappingNode, Node

from rarlhf.config.errors import UserError
from rarlhf.config.load import load_params
from rarlhf.config.refusals import shown
from tasks.running.outputs import Outputs

PARAMS = Path("params.yaml")
PRESETS = Path("presets")


def apply_preset(name: str, data: str | None = None, force: bool = False) -> str:
    """Writes presets/NAME.yaml over params.yaml, with `data.path` set where `data` is given.

    Args:
        name: of a file in presets/.
        data: file or folder of the data, relative to the repository's root, or None to leave the preset's value.
        force: whether to overwrite a params.yaml that was edited.

    Returns: a line saying what was done.
    Raises: UserError for an unknown preset, data that is not there or that the preset does not read, or an edited
        params.yaml without `force`.
    """
    text = _preset_text(name, data)
    if PARAMS.exists() and not PARAMS.is_file():
        raise UserError(f"{PARAMS} is not a plain file: move it away first")
    old = PARAMS.read_bytes() if PARAMS.is_file() else None
    if old == text.encode():
        return f"{PARAMS} is already preset {name}"
    if old is not None and not force and not _is_preset(old):
        raise UserError(
            f"{PARAMS} was edited and is not overwritten; keep a copy of it or add FORCE=1 "
            f"(python -m tasks.preset {name} --force)"
        )
    _write(text)
    return f"{PARAMS} is now preset {name}"


def override(values: Mapping[str, object]) -> None:
    """Sets values in params.yaml by dotted key, all of them, or none if the result would not be valid.

    Raises: UserError for a key that is not there or a value that is not allowed.
    """
    text = PARAMS.read_text(encoding="utf-8")
    for key, value in values.items():
        text = set_value(text, key, value)
    _write(text, check=True)


def set_value(text: str, key: str, value: object) -> str:
    """The YAML text with the value at a dotted key replaced.

    Raises: UserError if the key is not there, or the file cannot hold the value.
    """
    node = _node(text, key)
    try:
        written = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{key} = {shown(value)}: no value for {PARAMS} ({error})") from error
    return text[: node.start_mark.index] + written + text[node.end_mark.index :]


def _node(text: str, key: str) -> Node:
    node: Node = YAML(pure=True).compose(text)
    for part in key.split("."):
        entries = node.value if isinstance(node, MappingNode) else []
        found = [value for name, value in entries if name.value == part]
        if not found:
            raise UserError(f"{key} is not a key of {PARAMS}; presets/tiny.yaml shows them all")
        node = found[0]
    return node


def _preset_text(name: str, data: str | None) -> str:
    path = PRESETS / f"{name}.yaml"
    known = sorted(file.stem for file in PRESETS.glob("*.yaml"))
    if name not in known:
        raise UserError(f"no preset {name}; there are {', '.join(known)}")
    text = path.read_text(encoding="utf-8")
    if data is None:
        return text
    if not Path(data).exists():
        raise UserError(f"no file or folder {data}; DATA is the folder of the data files")
    source = _node(text, "data.source").value
    if source != "file":
        raise UserError(f"preset {name} reads no files (data.source is {source}): leave DATA out")
    return set_value(text, "data.path", data)


def _is_preset(content: bytes) -> bool:
    """Whether a params.yaml is one of the presets, whatever its data.path."""
    presets = [path.read_text(encoding="utf-8") for path in PRESETS.glob("*.yaml")]
    try:
        text = set_value(content.decode().replace("\r\n", "\n"), "data.path", None)
    except (UserError, YAMLError, ValueError, RecursionError):  # not text, not YAML, or without the key
        return False
    return text in [set_value(preset, "data.path", None) for preset in presets]


def _write(text: str, check: bool = False) -> None:
    outputs = Outputs()
    try:
        with outputs.write(PARAMS) as partial:
            partial.write_text(text, encoding="utf-8")
            if check:
                _validate(partial)
        outputs.commit()
    finally:
        outputs.discard()


def _validate(partial: Path) -> None:
    try:
        load_params(partial)
    except UserError as error:
        raise UserError(str(error).replace(str(partial), f"{PARAMS} (left as it was)")) from None


def main() -> int:
    """The command line; returns the exit status."""
    about = "Write a preset over params.yaml and check it."
    parser = argparse.ArgumentParser("python -m tasks.preset", description=about)
    parser.add_argument("name", nargs="?", help="name of a file in presets/; left out: only check params.yaml")
    parser.add_argument("--data", help="file or folder of the data, for presets that read files")
    parser.add_argument("--force", action="store_true", help="overwrite a params.yaml that was edited")
    arguments = parser.parse_args()
    try:
        if arguments.name is not None:
            print(apply_preset(arguments.name, arguments.data, arguments.force))
        elif arguments.data is not None:
            raise UserError("DATA goes with PRESET=name; to change the data alone, edit data.path in params.yaml")
        load_params(PARAMS)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
