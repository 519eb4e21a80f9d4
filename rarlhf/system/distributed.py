"""Several processes that train one policy: how they share the rows of a batch and combine their results.

Every process holds the whole policy, or its part of it (rarlhf/models/sharding.py), and after each rollout the whole
batch; it samples, scores and differentiates its own share of the rows. Gradients are added up, so that the optimiser
takes the same step everywhere.
"""

import os
from collections.abc import Callable, Iterable
from dataclasses import fields, is_dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, distributed

from rarlhf.config.errors import UserError

Part = TypeVar("Part")
PATIENCE = timedelta(hours=2)  # how long a process waits for the slowest; a dead process is noticed at once


class World:
    """A single process, which does all rows itself.

    Attributes:
        rank: number of this process, from 0; 0 writes the files.
        size: number of processes.
    """

    rank = 0
    size = 1

    def share(self, rows: int) -> Tensor:
        """(n,) int64, this process's share of the rows 0 to `rows` - 1; all shares in order of rank are all rows."""
        return torch.arange(rows).tensor_split(self.size)[self.rank]

    def gather(self, part: Part) -> list[Part]:
        """The parts of all processes in order of rank, the same for each process."""
        return [part]

    def first(self, make: Callable[[], Part]) -> Part:
        """What `make` gives in the first process, for each process; where it fails there, it fails in all."""
        return make()

    def sum(self, x: Tensor) -> Tensor:
        """The sum of `x` over the processes; `x` itself may be changed."""
        return x

    def max(self, x: float) -> float:
        """The largest `x` of the processes."""
        return x

    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Adds up the gradients in place; a process without rows has none and takes part with zeros."""


class Processes(World):
    """The processes that a launcher such as `accelerate launch` has started.

    Attributes:
        device: of this process; NCCL, which connects GPUs, takes only tensors on it.
    """

    def __init__(self, cpu: bool = False) -> None:
        from accelerate import PartialState

        state = PartialState(cpu=cpu or not torch.cuda.is_available(), timeout=PATIENCE)
        self.rank, self.size = state.process_index, state.num_processes
        self.device = torch.device(state.device)

    def gather(self, part: Part) -> list[Part]:
        """The parts of all processes in order of rank, the same for each process, with tensors on its own device.

        Tensors are sent as copies on the CPU, because unpickling puts a tensor on the device that it came from.
        """
        parts: list[Any] = [None] * self.size
        distributed.all_gather_object(parts, moved(part, torch.device("cpu")))
        return [moved(other, self.device) for other in parts]

    def first(self, make: Callable[[], Part]) -> Part:
        """What `make` gives in the first process, for each process, with its tensors on the CPU.

        Raises: UserError in all processes if it is raised in the first.
        """
        told: list[Any] = [None]
        if self.rank == 0:
            try:
                told = [moved(make(), torch.device("cpu"))]
            except UserError as error:
                told = [error]
        distributed.broadcast_object_list(told, src=0)
        if isinstance(told[0], UserError):
            raise told[0]
        return cast("Part", told[0])

    def sum(self, x: Tensor) -> Tensor:
        """The sum of `x`, a tensor on this process's device, over the processes; `x` itself is changed."""
        distributed.all_reduce(x)
        return x

    def max(self, x: float) -> float:
        """The largest `x` of the processes."""
        return max(self.gather(x))

    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Adds up the gradients in place; a process without rows has none and takes part with zeros."""
        parameters = list(parameters)
        owners = torch.tensor([float(parameter.grad is not None) for parameter in parameters], device=self.device)
        for parameter, count in zip(parameters, self.sum(owners).tolist(), strict=True):
            if count > 0:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                self.sum(parameter.grad)


def refuse_unlike(world: World, inputs: str) -> None:
    """Refuses processes that would train on different things, such as machines with other files or another commit.

    Args:
        world: the processes; all of them call this.
        inputs: a digest of all that a process reads, its params and code included.
    Raises: UserError in all processes.
    """
    digests = world.gather(inputs)
    unlike = [str(rank) for rank, digest in enumerate(digests) if digest != digests[0]]
    if unlike:
        raise UserError(
            f"process {', '.join(unlike)} has other inputs than the first: give every machine the same commit, the "
            "same params.yaml, and by `dvc pull` the same files"
        )


def moved(part: Any, device: torch.device) -> Any:
    """`part` with all its tensors on `device`, also in tuples, lists, dictionaries and dataclasses."""
    if isinstance(part, Tensor):
        return part.to(device)
    if isinstance(part, tuple):
        items = [moved(item, device) for item in part]
        return type(part)(*items) if hasattr(part, "_fields") else tuple(items)
    if isinstance(part, list):
        return [moved(item, device) for item in part]
    if isinstance(part, dict):
        return {key: moved(value, device) for key, value in part.items()}
    if is_dataclass(part) and not isinstance(part, type):
        return replace(part, **{field.name: moved(getattr(part, field.name), device) for field in fields(part)})
    return part


def world(cpu: bool = False) -> World:
    """The processes that the launcher started, or this one alone.

    Args:
        cpu: whether to compute on the CPU even where there is a GPU, as with `runtime.device: cpu`.
    """
    return Processes(cpu) if int(os.environ.get("WORLD_SIZE", "1")) > 1 else World()
