"""What a stage depends on, read from dvc.yaml, and its hash."""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import product
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from rarlhf.config.errors import UserError
from rarlhf.config.params import Params

TEMPLATE = re.compile(r"\$\{([^}]+)\}")


@dataclass(frozen=True)
class Inputs:
    """The parameters and files that decide a stage's outputs.

    Attributes:
        stage: name of the stage with its seed or method, as in `ppo@rlhf-1`.
        params: dotted key of params.yaml to value.
        files: path of each file or folder to the SHA-256 of its content, in hexadecimal.
    """

    stage: str
    params: Mapping[str, Any]
    files: Mapping[str, str]

    @cached_property
    def hash(self) -> str:
        """SHA-256 over all of it, in hexadecimal."""
        text = json.dumps([self.stage, self.params, self.files], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Work:
    """What dvc.yaml says of one run of a stage.

    Attributes:
        about: what it does, in one line; may be empty.
        command: as DVC starts it.
        outputs: paths that it makes.
    """

    about: str
    command: str
    outputs: tuple[str, ...]


def read_inputs(
    stage: str, arguments: Mapping[str, object], params: Params, digest_of: Callable[[Path], str] | None = None
) -> Inputs:
    """Reads a stage's entry in dvc.yaml and hashes the files it names.

    Args:
        stage: name of the entry.
        arguments: the stage's own arguments; `${item.seed}` in dvc.yaml stands for the argument `seed`.
        params: the parameters, which other `${...}` stand for.
        digest_of: hashes a file or folder; None for `digest`.

    Raises: UserError if dvc.yaml, the entry, a parameter or a file is missing.
    """
    values = params.model_dump(mode="json")
    entry, names = _entry(stage), _names(stage, arguments, values)
    files = [_fill(path, names) for path in entry.get("deps", [])]
    return Inputs(
        label(stage, arguments),
        {key: lookup(values, key) for key in _keys(entry, names)},
        {path: (digest_of or digest)(Path(path)) for path in files},
    )


def inputs_of(run: str, params: Params, digest_of: Callable[[Path], str] | None = None) -> Inputs:
    """As `read_inputs`, of a run by its name in DVC: `ppo@rlhf-1`, `generate@rlhf`, `check`."""
    return read_inputs(*stage_of(run), params, digest_of)


def stage_of(run: str) -> tuple[str, dict[str, str]]:
    """The stage of a run and its arguments, from the run's name in DVC: `ppo` with method `rlhf` and seed `1`.

    Raises: UserError if dvc.yaml has no such stage.
    """
    stage, _, items = run.partition("@")
    keys = _matrix(stage)
    return stage, dict(zip(keys, items.split("-", len(keys) - 1), strict=True)) if keys else {}


def title_of(run: str) -> str:
    """A run's name in DVC as words: `ppo rlhf seed 1` for `ppo@rlhf-1`.

    Raises: UserError if dvc.yaml has no such stage.
    """
    stage, arguments = stage_of(run)
    return " ".join([stage, *(f"seed {item}" if key == "seed" else item for key, item in arguments.items())])


def work_of(stage: str, arguments: Mapping[str, object], params: Params) -> Work | None:
    """What dvc.yaml says of one run of a stage; None for a stage that it does not have."""
    if stage not in _stages():
        return None
    entry, names = _entry(stage), _names(stage, arguments, params.model_dump(mode="json"))
    kinds = (entry.get(kind, []) for kind in ("outs", "metrics"))
    paths = (path for kind in kinds for item in kind for path in ([item] if isinstance(item, str) else item))
    outputs = tuple(_fill(path, names) for path in paths)
    return Work(entry.get("desc", ""), _fill(" ".join(entry["cmd"].split()), names), outputs)


def run_names(params: Params) -> Iterator[str]:
    """Names in DVC of all runs of all stages, in the order of dvc.yaml."""
    values = params.model_dump(mode="json")
    for stage in _stages():
        lists = [_items(text, values) for text in _matrix(stage).values()]
        yield from (f"{stage}@{'-'.join(map(str, items))}" for items in product(*lists)) if lists else [stage]


def params_hash(params: Params) -> str:
    """SHA-256 over all values of params.yaml, whatever their order, in hexadecimal."""
    text = json.dumps(params.model_dump(mode="json"), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def label(stage: str, arguments: Mapping[str, object]) -> str:
    """Name of one run of a stage, as DVC writes it: `ppo@rlhf-1`, `samples@train`, `check`."""
    item = [str(arguments[key]) for key in ("split", "method", "seed") if key in arguments]
    return f"{stage}@{'-'.join(item)}" if item else stage


def lookup(values: Any, key: str) -> Any:
    """The value at a dotted key of nested mappings; the whole value for the empty key.

    Raises: UserError if there is none.
    """
    for part in filter(None, key.split(".")):
        if not isinstance(values, Mapping) or part not in values:
            raise UserError(f"dvc.yaml names the key {key}, which params.yaml does not have")
        values = values[part]
    return values


def digest(path: Path) -> str:
    """SHA-256 of a file's content, or of the names and contents in a folder, in hexadecimal.

    Raises: UserError if there is nothing at `path`.
    """
    if path.is_file():
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    if not path.is_dir():
        raise UserError(f"{path} is missing, an input of this stage: `dvc repro` makes the inputs first")
    lines = (f"{file.relative_to(path).as_posix()} {digest(file)}\n" for file in _files(path))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _files(folder: Path) -> list[Path]:
    """All files below a folder in sorted order, links followed, without Python's compiled copies."""
    walk = os.walk(folder, followlinks=True)
    return sorted(Path(root, name) for root, _, names in walk if not root.endswith("__pycache__") for name in names)


def _stages() -> Mapping[str, Any]:
    path = Path("dvc.yaml")
    if not path.is_file():
        raise UserError("dvc.yaml is missing: run from the repository's root")
    return _parsed(path.read_text(encoding="utf-8"))


@cache
def _parsed(text: str) -> Mapping[str, Any]:
    return dict(YAML(typ="safe").load(text)["stages"])


def _entry(stage: str) -> Mapping[str, Any]:
    stages = _stages()
    if stage not in stages:
        raise UserError(f"dvc.yaml has no stage {stage}; it has {', '.join(stages)}")
    entry = dict(stages[stage])
    return {**entry.pop("do", {}), **entry}


def _matrix(stage: str) -> Mapping[str, Any]:
    """The matrix of a stage: each key to a list, or to a `${key}` of params.yaml; a `foreach` is over methods."""
    entry = _entry(stage)
    return {"method": entry["foreach"]} if "foreach" in entry else dict(entry.get("matrix", {}))


def _names(stage: str, arguments: Mapping[str, object], values: Mapping[str, Any]) -> dict[str, Any]:
    """What `${...}` of a stage stands for: the params, and its own item; of a `foreach` also the item's key."""
    over = _entry(stage).get("foreach")
    if over is None:
        return {**values, "item": arguments}
    key = arguments["method"]
    return {**values, "key": key, "item": lookup(values, over.removeprefix("${").removesuffix("}"))[key]}


def _items(text: str | list[Any], values: Mapping[str, Any]) -> list[Any]:
    """The items of a list, or of the list or mapping that `${key}` names; of a mapping its keys, as in DVC."""
    return text if isinstance(text, list) else list(lookup(values, text.removeprefix("${").removesuffix("}")))


def _keys(entry: Mapping[str, Any], names: Mapping[str, Any]) -> Iterator[str]:
    """Keys of the entry's `params:`; `params.yaml:` with nothing after it is the whole file, as in DVC."""
    for item in entry.get("params", []):
        keys = [item] if isinstance(item, str) else (item["params.yaml"] or [""])
        yield from (_fill(key, names) for key in keys)


def _fill(text: str, names: Mapping[str, Any]) -> str:
    """The text with each `${key}` replaced by its value."""
    return TEMPLATE.sub(lambda match: str(lookup(names, match[1].strip())), text)
