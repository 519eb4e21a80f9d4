"""Checkpoints of several processes.

Where each process holds all weights, the first writes and reads the checkpoint and tells the others, which need not see
its folder. Where weights are divided (`runtime.sharding: full`), each process writes and reads its own part. The first
process's file names the iteration, and is replaced when all other parts of that iteration are on disk: a kill at any
moment leaves the parts of one iteration whole.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from rarlhf.config.errors import UserError
from rarlhf.rl.checkpoint import Loaded, load_checkpoint, save_checkpoint
from rarlhf.system.distributed import World


def save_together(
    path: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any], world: World, sharded: bool
) -> None:
    """Writes the checkpoint at `path`; all processes call this.

    Args:
        path: of the checkpoint.
        tensors: that this process holds.
        state: the same in all processes, with the number of its `iteration`.
        world: the processes.
        sharded: whether each process holds a part.
    Raises: UserError as `save_checkpoint`.
    """
    if sharded:
        if world.rank:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_checkpoint(_part(path, world.rank, state["iteration"]), tensors, state)
        world.max(0.0)  # all other parts are on disk
    if world.rank == 0:
        save_checkpoint(path, tensors, state)
    if sharded:
        world.max(0.0)  # nothing names the older parts any more
        for old in path.parent.glob(_part(path, world.rank, "*").name) if world.rank else ():
            if old != _part(path, world.rank, state["iteration"]):
                old.unlink()


def load_together(path: Path, world: World, sharded: bool) -> Loaded | None:
    """What this process holds of the checkpoint at `path`; None if there is none. All processes call this.

    Raises: UserError in all processes if the file of any of them is not a checkpoint or is missing.
    """
    if not sharded:
        return world.first(lambda: load_checkpoint(path))
    found = world.first(lambda: _iteration(path))
    if found is None:
        return None
    own = path if world.rank == 0 else _part(path, world.rank, found)
    loaded, fault = _read(own)
    faults = [of for of in world.gather(fault) if of]
    if faults:
        raise UserError(
            f"{path} is a part of a checkpoint, and {'; '.join(faults)}. Run each process in the folder where it ran "
            f"before, or delete {path} to start over"
        )
    return loaded


def _part(path: Path, rank: int, iteration: object) -> Path:
    return path.with_name(f"{path.stem}.{rank}.{iteration}{path.suffix}")


def _read(part: Path) -> tuple[Loaded | None, str | None]:
    """What a part holds, or what is wrong with it."""
    try:
        loaded = load_checkpoint(part)
    except UserError as error:
        return None, str(error)
    return loaded, None if loaded else f"{part} is missing"


def _iteration(path: Path) -> int | None:
    loaded = load_checkpoint(path)
    return None if loaded is None else int(loaded[1]["iteration"])
