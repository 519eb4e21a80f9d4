"""The files of a model's folder, by their names."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from rarlhf.config.errors import UserError

PLAIN = ("*.json", "*.txt", "*.model")  # configuration and tokenizer
WEIGHTS = ("model.safetensors", "model-*.safetensors")
PICKLED = ("pytorch_model.bin", "pytorch_model-*.bin")
INDEX = "model.safetensors.index.json"
CONFIG = "config.json"
TOKENIZER = "tokenizer_config.json"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def weight_files(folder: Path) -> list[Path]:
    """The safetensors of a model's folder, with their index if there are several; empty if there are none."""
    if (folder / WEIGHTS[0]).is_file():
        return [folder / WEIGHTS[0]]
    return [folder / INDEX, *sorted(folder.glob(WEIGHTS[1]))] if (folder / INDEX).is_file() else []


def pickled_files(folder: Path) -> list[Path]:
    """Pickled weights in a model's folder."""
    return sorted(path for pattern in PICKLED for path in folder.glob(pattern))


def plain_files(folder: Path) -> list[Path]:
    """Configuration and tokenizer of a model's folder."""
    return sorted(path for pattern in PLAIN for path in folder.glob(pattern) if path.name != INDEX)


def link_or_copy(file: Path, target: Path) -> None:
    """Makes `target` a hard link to a file, which takes no disk space, or a copy if the file system has no links.

    Writing to one would change both, so this is for files that nothing writes to: the hub's cache does not, and DVC
    makes them read-only.
    """
    real = file.resolve()  # the cache's snapshots are links to its blobs
    try:
        os.link(real, target)
    except OSError:
        shutil.copyfile(real, target)


def json_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file of a model's folder.

    Raises: UserError if it cannot be read, or is not a JSON object.
    """
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{file} cannot be read as JSON ({reason}); make or copy the folder again") from error
    if not isinstance(values, dict):
        raise UserError(f"{file} is not a JSON object; make or copy the folder again")
    return values


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter rather than a whole model."""
    return (folder / ADAPTER_CONFIG).is_file()


def adapter_weights(folder: Path) -> Path:
    """The file of an adapter's weights.

    Raises: UserError if the folder holds no adapter in safetensors.
    """
    if not (is_adapter(folder) and (folder / ADAPTER_WEIGHTS).is_file()):
        raise UserError(f"{folder} is not a folder of an adapter: it must hold {ADAPTER_CONFIG} and {ADAPTER_WEIGHTS}")
    return folder / ADAPTER_WEIGHTS


def base_of(folder: Path) -> Path:
    """Folder of the base model that an adapter's folder names.

    Raises: UserError if it is not found, neither as named nor below one of the folders above the adapter's.
    """
    name = json_object(folder / ADAPTER_CONFIG).get("base_model_name_or_path") or "unnamed"
    for place in (Path(name), *(parent / name for parent in folder.resolve().parents)):
        if (place / CONFIG).is_file():
            return place
    raise UserError(
        f"{folder} is an adapter of the base model {name!r}, which is not there; make it (`dvc repro base`)"
    )
