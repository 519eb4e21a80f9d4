"""Checkpoints of a training: one file, written whole or not at all, without pickle."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor


def save_checkpoint(path: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Writes tensors and a JSON-able state to `path`; until all is on disk the old file stays.

    Raises: OSError if there is no room; the old checkpoint survives.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    flat = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        save_file(flat, partial, metadata={"state": json.dumps(state)})
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    partial.replace(path)


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Tensors and state of a checkpoint, or None if there is none."""
    if not path.is_file():
        return None
    with safe_open(path, framework="pt") as file:
        state = json.loads(file.metadata()["state"])
        return {name: file.get_tensor(name) for name in file.keys()}, state  # noqa: SIM118, not a dict


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str]) -> dict[str, Tensor]:
    """The optimiser's per-parameter state, named `PARAMETER/FIELD`."""
    return {
        f"{names[parameter]}/{field}": value
        for parameter, fields in optimizer.state.items()
        for field, value in fields.items()
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str], tensors: Mapping[str, Tensor]
) -> None:
    """Puts back what `optimizer_tensors` gave; the parameters must be the same."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            prefix = f"{names[parameter]}/"
            fields = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
            for field, value in fields.items():
                device = value.device if field == "step" else parameter.device
                optimizer.state[parameter][field] = value.to(device).clone()
