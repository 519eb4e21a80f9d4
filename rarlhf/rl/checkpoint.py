"""Checkpoints of a training: one file without pickle, which is either complete or not there."""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from rarlhf.config.errors import UserError
from rarlhf.models.sharding import like_parameter, own_part
from rarlhf.system.files import replaced

Loaded = tuple[dict[str, Tensor], dict[str, Any]]  # what a checkpoint holds: tensors by name, and the state
SHOWN = 4  # differing keys that an error names


def save_checkpoint(path: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Writes tensors and a state that JSON can hold to `path`; the old file stays until the new one is on disk.

    Raises: UserError if it cannot be written, for example because the disk is full; the old checkpoint stays.
    """
    flat = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        with replaced(path) as partial:
            save_file(flat, partial, metadata={"state": json.dumps(state)})
    except (OSError, SafetensorError) as error:
        kept = "the one before it is kept" if path.is_file() else "there was none before it"
        raise UserError(
            f"the checkpoint {path} could not be written ({error}); {kept}. Make room in that folder, then run again"
        ) from error


def load_checkpoint(path: Path) -> Loaded | None:
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
        raise UserError(f"{path} is not a checkpoint of a training ({error}); delete it to start over") from error


def refuse_other(path: Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Refuses the checkpoint of another training.

    Args:
        path: of the checkpoint, for the message.
        there: settings that the checkpoint was made with, by key.
        here: settings of this training.
    Raises: UserError that names the keys whose values differ, both values, and what to do.
    """
    keys = [key for key in here if key not in there or there[key] != here[key]]
    if keys:
        shown = [f"{key} = {there.get(key, 'nothing')} there, {here[key]} here" for key in keys[:SHOWN]]
        more = f"; and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
        raise UserError(
            f"{path} is the checkpoint of another training: {'; '.join(shown)}{more}. "
            "Give the values it was made with to continue it, or delete it to start over"
        )


def refuse_former(path: Path, names: Iterable[str]) -> None:
    """Refuses a checkpoint of a former version, which names the optimiser's state by parameters, not by numbers.

    Args:
        path: of the checkpoint, for the message.
        names: of its tensors.
    Raises: UserError that says so, and what to do.
    """
    if any(name.startswith("adam/") and not name.split("/")[1].isdigit() for name in names):
        raise UserError(f"{path} is a checkpoint of a former version of rarlhf; delete it to start over")


def trained(model: nn.Module) -> list[tuple[str, Tensor]]:
    """The trained parameters with their names, without those of a frozen backbone; of divided ones, our part."""
    return [(name, own_part(parameter)) for name, parameter in model.named_parameters() if parameter.requires_grad]


def training_tensors(policy: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The policy's trained weights, named `policy/PARAMETER`, and the optimiser's state, `adam/INDEX/FIELD`."""
    state = optimizer.state_dict()["state"]
    moments = {f"adam/{index}/{name}": own_part(value) for index, of in state.items() for name, value in of.items()}
    return {f"policy/{name}": parameter for name, parameter in trained(policy)} | moments


@torch.no_grad()
def restore_training(policy: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Puts back what `training_tensors` gave; the parameters must be the same."""
    for name, parameter in trained(policy):
        parameter.copy_(tensors[f"policy/{name}"])
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        kind, _, place = key.partition("/")
        if kind == "adam":
            index, _, name = place.partition("/")
            own = value.clone()  # the optimiser changes its state in place
            moment = like_parameter(own, parameters[int(index)]) if own.dim() else own  # the number of steps is one
            state.setdefault(int(index), {})[name] = moment
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})


def load_training(
    path: Path,
    settings: Mapping[str, Any],
    policy: nn.Module,
    optimizer: torch.optim.Optimizer,
    load: Callable[[Path], Loaded | None] = load_checkpoint,
) -> Loaded | None:
    """Restores weights and optimiser from the checkpoint at `path`; returns all it holds, or None if there is none.

    Args:
        path: of the checkpoint.
        settings: that it must have been made with.
        policy: gets the weights.
        optimizer: gets its state.
        load: reads it.
    Raises: UserError if it is not a checkpoint, is of a former version or of a training with other `settings`, or
        holds other weights.
    """
    loaded = load(path)
    if loaded is None:
        return None
    tensors, state = loaded
    refuse_former(path, tensors)
    refuse_other(path, state.get("settings", {}), settings)
    try:
        restore_training(policy, optimizer, tensors)
    except (IndexError, KeyError, ValueError) as error:
        raise UserError(f"{path} has other weights than this training ({error}); delete it to start over") from error
    return loaded
