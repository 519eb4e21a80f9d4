"""The files of a model's folder, by their names."""

import os
import shutil
from pathlib import Path

PLAIN = ("*.json", "*.txt", "*.model")  # configuration and tokenizer
WEIGHTS = ("model.safetensors", "model-*.safetensors")
PICKLED = ("pytorch_model.bin", "pytorch_model-*.bin")
INDEX = "model.safetensors.index.json"


def weight_files(folder: Path) -> list[Path]:
    """The safetensors of a model's folder, with their index where there are several; empty where there are none."""
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
    """Makes `target` a second name of a file, which takes no room; a copy where the file system does not allow that.

    Whoever writes to one would change both, so this is for files that nobody writes to: the hub's cache does not, and
    DVC makes them read-only.
    """
    real = file.resolve()  # the cache's snapshots are links to its blobs
    try:
        os.link(real, target)
    except OSError:
        shutil.copyfile(real, target)
