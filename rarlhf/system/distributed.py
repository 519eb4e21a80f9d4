"""Several processes that train one policy: who does which rows, and how what they made comes together.

Every process holds the whole policy and, after each rollout, the whole batch; it samples, scores and differentiates its
own share of the rows. Gradients are added up, so that the optimiser takes the same step everywhere.
"""

import os
from collections.abc import Iterable
from dataclasses import fields, is_dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

Part = TypeVar("Part")
PATIENCE = timedelta(hours=2)  # a process waits this long for the slowest one; one that ended is noticed at once


class World:
    """One process, alone: it does all rows, and what is brought together is what it has.

    Attributes:
        rank: number of this process, from 0; 0 writes the files.
        size: number of processes.
    """

    rank = 0
    size = 1

    def share(self, rows: int) -> Tensor:
        """(n,) int64, which of `rows` rows this process does; the processes' shares in their order are all of them."""
        return torch.arange(rows).tensor_split(self.size)[self.rank]

    def gather(self, part: Part) -> list[Part]:
        """Every process's part, in the order of their ranks, to each of them."""
        return [part]

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
        device: this process's own; NCCL, which joins GPUs, takes no tensor of another one.
    """

    def __init__(self, cpu: bool = False) -> None:
        from accelerate import PartialState

        state = PartialState(cpu=cpu or not torch.cuda.is_available(), timeout=PATIENCE)
        self.rank, self.size = state.process_index, state.num_processes
        self.device = torch.device(state.device)

    def gather(self, part: Part) -> list[Part]:
        """Every process's part, in the order of their ranks, to each of them; its tensors on this process's device.

        They travel as copies on the CPU: a tensor is unpickled on the device that it was pickled on, the sender's.
        """
        parts: list[Any] = [None] * self.size
        distributed.all_gather_object(parts, moved(part, torch.device("cpu")))
        return [moved(other, self.device) for other in parts]

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


def moved(part: Any, device: torch.device) -> Any:
    """`part` with its tensors on `device`, those in tuples, lists, dictionaries and dataclasses among them."""
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
    """The processes of the launcher's environment, or this one alone.

    Args:
        cpu: whether they compute on the CPU although there is a GPU, as with `runtime.device: cpu`.
    """
    return Processes(cpu) if int(os.environ.get("WORLD_SIZE", "1")) > 1 else World()
