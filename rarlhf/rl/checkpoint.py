"""Checkpoints of a training: one file, written whole or not at all, without pickle."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from rarlhf.config.errors import UserError

SHOWN = 4  # differing keys that a refusal names


def save_checkpoint(path: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Writes tensors and a JSON-able state to `path`; until all is on disk the old file stays.

    Raises: UserError if it cannot be written, for want of room above all; the old checkpoint survives.
    """
    # A folder, because the library writes under a name of its own first, which a killed process leaves behind.
    partial = path.with_suffix(".partial")
    flat = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        save_file(flat, partial / path.name, metadata={"state": json.dumps(state)})
        with (partial / path.name).open("rb+") as file:
            os.fsync(file.fileno())
        (partial / path.name).replace(path)
    except (OSError, SafetensorError) as error:
        kept = "the one before it is kept" if path.is_file() else "there was none before it"
        raise UserError(
            f"the checkpoint {path} could not be written ({error}); {kept}. Make room in that folder, then run again"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Tensors and state of a checkpoint, or None if there is none.

    Raises: UserError if the file is not a checkpoint.
    """
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            state = json.loads((file.metadata() or {})["state"])
            return {name: file.get_tensor(name) for name in file.keys()}, state  # noqa: SIM118, not a dict
    except (SafetensorError, KeyError, ValueError) as error:
        raise UserError(f"{path} is not a checkpoint of a training ({error}); delete it to begin anew") from error


def refuse_other(path: Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Refuses a checkpoint whose training was not this one.

    Args:
        path: of the checkpoint, for the message.
        there: what the checkpoint was made with, by key.
        here: the same of this training.
    Raises: UserError naming the keys of `here` whose values are not the same there, both values, and what to do.
    """
    keys = [key for key in here if key not in there or there[key] != here[key]]
    if keys:
        shown = [f"{key} = {there.get(key, 'nothing')} there, {here[key]} here" for key in keys[:SHOWN]]
        more = f"; and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
        raise UserError(
            f"{path} is the checkpoint of another training: {'; '.join(shown)}{more}. "
            "Give the values it was made with to go on from it, or delete it to begin anew"
        )


def _trained(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The parameters that are trained, with their names; those of a frozen backbone are not among them."""
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def training_tensors(policy: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The policy's trained weights, named `policy/PARAMETER`, and the optimiser's state, `adam/PARAMETER/FIELD`."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in _trained(policy)}
    moments = {
        f"adam/{names[parameter]}/{field}": value
        for parameter, fields in optimizer.state.items()
        for field, value in fields.items()
    }
    return {f"policy/{name}": parameter for parameter, name in names.items()} | moments


@torch.no_grad()
def restore_training(policy: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Puts back what `training_tensors` gave; the parameters must be the same."""
    for name, parameter in _trained(policy):
        parameter.copy_(tensors[f"policy/{name}"])
        prefix = f"adam/{name}/"
        for key in filter(lambda key: key.startswith(prefix), tensors):
            field, value = key.removeprefix(prefix), tensors[key]
            optimizer.state[parameter][field] = value.to(parameter.device).clone()


def load_training(
    path: Path, settings: Mapping[str, Any], policy: nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, Any] | None:
    """Takes up weights and optimiser from the checkpoint at `path`; returns its state, or None if there is none.

    Raises: UserError if it is not a checkpoint, or of a training with other `settings`.
    """
    loaded = load_checkpoint(path)
    if loaded is None:
        return None
    tensors, state = loaded
    refuse_other(path, state.get("settings", {}), settings)
    restore_training(policy, optimizer, tensors)
    return state
