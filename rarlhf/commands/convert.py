"""Converts pickled weights to safetensors: `rarlhf convert SOURCE FOLDER`.

Nothing else in this project reads a pickle. `torch.load(weights_only=True)` accepts only tensors and plain containers
and runs no code of the file; still, convert only files from somebody you trust.
"""

import json
import pickle
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from rarlhf.config.errors import UserError
from rarlhf.models.files import INDEX, PICKLED, WEIGHTS, pickled_files, plain_files
from rarlhf.models.folders import refuse_no_conversion, refuse_nothing_pickled
from rarlhf.models.hub import fetch_model
from rarlhf.system.files import whole

if TYPE_CHECKING:
    import torch


def convert(source: str, out: Path, revision: str | None = None) -> list[str]:
    """Writes a model with pickled weights to `out` with safetensors; the weights stay the same.

    Args:
        source: local folder or hub name.
        out: folder to make; it may exist if it is empty.
        revision: of a hub model.
    Returns: names of the files of weights.
    Raises: UserError if `out` is not empty, there are no pickled weights, or a file holds other things than tensors.
    """
    refuse_no_conversion(source, out, revision)
    from safetensors.torch import save_file

    local = Path(source)
    folder = local if local.is_dir() else fetch_model(source, revision, "SOURCE", [*PICKLED, *WEIGHTS]).folder
    refuse_nothing_pickled(source, folder)
    pickled = pickled_files(folder)
    names = [path.name.replace("pytorch_model", "model").replace(".bin", ".safetensors") for path in pickled]
    weight_map: dict[str, str] = {}
    with whole(out) as partial:
        for path, name in zip(pickled, names, strict=True):
            tensors = _tensors(path)
            save_file(tensors, partial / name, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(tensors, name)
        for path in plain_files(folder):
            if not path.name.endswith(".bin.index.json"):
                shutil.copyfile(path, partial / path.name)
        if len(names) > 1:
            index = {"metadata": {}, "weight_map": weight_map}
            (partial / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return names


def _tensors(path: Path) -> "dict[str, torch.Tensor]":
    import torch

    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{path} is no plain file of weights, and is not read any further ({reason})") from error
    if not isinstance(values, dict) or not all(isinstance(value, torch.Tensor) for value in values.values()):
        raise UserError(f"{path} holds other things than tensors by name; convert it by hand")
    return {name: value.clone().contiguous() for name, value in values.items()}  # safetensors has no shared memory
