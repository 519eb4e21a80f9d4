"""Puts a preset or single values into params.yaml: `python -m tasks.preset imdb-scratch --data FOLDER`.

Values are replaced in the text, so that comments and layout stay.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import CollectionNode, MappingNode, Node, ScalarNode

from rarlhf.config.errors import UserError
from rarlhf.config.load import load_params
from rarlhf.config.params import Params, RiskParams
from rarlhf.config.refusals import shown, unreadable
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
    _write(overridden(values))


def overridden(values: Mapping[str, object], preset: str | None = None) -> str:
    """The text of params.yaml, or of a preset, with values set by dotted key; writes nothing.

    Raises: UserError for a preset or a key that is not there, or a value that is not allowed.
    """
    text = PARAMS.read_text(encoding="utf-8") if preset is None else _preset_text(preset, None)
    text = set_values(text, values)
    params_of(text, f"{PARAMS} (left as it was)")
    return text


def params_of(text: str, name: str) -> Params:
    """The params that a YAML text holds; errors call it `name`.

    Raises: UserError as `load_params`.
    """
    with TemporaryDirectory() as folder:
        path = Path(folder, PARAMS)
        path.write_text(text, encoding="utf-8")
        try:
            return load_params(path)
        except UserError as error:
            raise UserError(str(error).replace(str(path), name)) from None


def set_values(text: str, values: Mapping[str, object]) -> str:
    """The YAML text with the values at dotted keys replaced.

    Raises: UserError as `set_value`.
    """
    keys = [f"{key}." for key in values]
    if any(inner != outer and inner.startswith(outer) for inner in keys for outer in keys):
        for key, value in values.items():  # the later one replaces a part of the earlier one's value, or all of it
            text = set_value(text, key, value)
        return text
    edits = [_edit(text, key, value) for key, value in values.items()]
    for start, end, written in sorted(edits, reverse=True):
        text = text[:start] + written + text[end:]
    return text


def set_value(text: str, key: str, value: object) -> str:
    """The YAML text with the value at a dotted key replaced.

    Raises: UserError if the key is not there, the file cannot hold the value, or the value cannot be replaced in the
        text: YAML anchors share it with another key, or nothing is written there.
    """
    start, end, written = _edit(text, key, value)
    return text[:start] + written + text[end:]


def _edit(text: str, key: str, value: object) -> tuple[int, int, str]:
    """Where the value at a dotted key begins and ends in the text, and what is written there instead."""
    node = _editable(text, key)
    try:
        written = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{key} = {shown(value)}: no value for {PARAMS} ({error})") from error
    start, end = node.start_mark.index, node.end_mark.index
    end -= len(text[start:end]) - len(text[start:end].rstrip())  # a block ends only where the next key begins
    # The items of a block may stand right below its key, where a value in brackets must not.
    indent = "  " if isinstance(node, CollectionNode) and not node.flow_style else ""
    return start, end, indent + written


def _editable(text: str, key: str) -> Node:
    """The node of the value at a dotted key, which no other key shares."""
    root, *path = _path(text, key)
    name, node = path[-2:]
    where = f"{key}: in {PARAMS}, line {name.start_mark.line + 1},"
    if _shared(root) & {id(part) for part in [*path, *_nodes(node)]}:
        raise UserError(
            f"{where} the value is shared with another key by YAML anchors (&, *, <<); write it out in each place"
        )
    if isinstance(node, ScalarNode) and not node.value and node.style not in ("'", '"'):
        raise UserError(f"{where} no value is written; write null there")
    return node


def _path(text: str, key: str) -> list[Node]:
    """The text's root, then for each part of a dotted key the node of its name and the node of its value."""
    try:
        path = [_composed(text)]
    except (YAMLError, RecursionError) as error:
        raise unreadable(PARAMS, error) from error
    for part in key.split("."):
        entries = path[-1].value if isinstance(path[-1], MappingNode) else []
        found = next((entry for entry in entries if entry[0].value == part), None)
        if found is None:
            raise UserError(_not_there(key, [name for name, _ in entries]))
        path += found
    return path


@lru_cache(maxsize=4)  # many values are set in the same text, and to compose it takes 0.09 s
def _composed(text: str) -> Node:
    return YAML(pure=True).compose(text)


def _nodes(root: Node) -> Iterator[Node]:
    """A node and all below it; one that anchors share comes once for each use, and what is below it once."""
    seen: set[int] = set()
    left = [root]
    while left:
        node = left.pop()
        yield node
        if isinstance(node, CollectionNode) and id(node) not in seen:
            left += chain(*node.value) if isinstance(node, MappingNode) else node.value
        seen.add(id(node))


def _shared(root: Node) -> set[int]:
    """The identities of the nodes that are used more than once, which anchors and aliases allow."""
    return {node for node, uses in Counter(map(id, _nodes(root))).items() if uses > 1}


def _not_there(key: str, names: Sequence[Node]) -> str:
    """Why a key was not found among the names of its section."""
    merged = [name for name in names if name.value == "<<"]
    if merged:
        where = f"{key}: in {PARAMS}, line {merged[0].start_mark.line + 1},"
        return f"{where} a merge key (<<) takes the section's values from elsewhere; write the value out there"
    parts = key.split(".")
    if parts[:2] == ["methods", "ppo"] and len(parts) == 4 and parts[3] in RiskParams.model_fields:
        return (
            f"{key}: in {PARAMS}, the entry {parts[2]} under methods.ppo has no key {parts[3]}; "
            f"write {parts[3]} with a value into the entry first"
        )
    return f"{key} is not a key of {PARAMS}; presets/tiny.yaml shows them all"


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
    source = _path(text, "data.source")[-1].value
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


def _write(text: str) -> None:
    outputs = Outputs()
    try:
        with outputs.write(PARAMS) as partial:
            partial.write_text(text, encoding="utf-8")
        outputs.commit()
    finally:
        outputs.discard()


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
        params = load_params(PARAMS)
        if arguments.name is None:
            print(f"{PARAMS} is valid (preset {params.preset})")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
