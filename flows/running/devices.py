"""Which accelerators there are, and their shares among tasks that run at the same time."""

import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue

from rarlhf.config.errors import UserError
from rarlhf.config.params import Params

VISIBLE = "CUDA_VISIBLE_DEVICES"
QUOTA = Path("/sys/fs/cgroup/cpu.max")  # a container's: microseconds of work in each period, and the period


def accelerators() -> list[str]:
    """Ids of the accelerators that this process may use, in the form of CUDA_VISIBLE_DEVICES; empty on a CPU."""
    visible = os.environ.get(VISIBLE)
    if visible is not None:
        ids = [item.strip() for item in visible.split(",")]
        return ids[: ids.index("-1")] if "-1" in ids else [item for item in ids if item]  # CUDA stops at -1
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return []
    lines = listed.stdout.splitlines() if listed.returncode == 0 else []
    return [str(number) for number, _ in enumerate(line for line in lines if line.startswith("GPU "))]


def stage_shares(params: Params, parallel: int | None = None) -> list[dict[str, str]]:
    """The shares of stages that run at the same time, as `shares`.

    Args:
        params: say how many threads a stage has, and what memory a training takes.
        parallel: how many stages; where None, one for each accelerator, or on a CPU as many as fit its cores
            and memory.
    """
    devices = [] if params.runtime.device == "cpu" else accelerators()
    return shares(devices, parallel or (None if devices else fitting(params)))


def fitting(params: Params) -> int:
    """How many stages this machine's cores and free memory have room for at the same time, at least one."""
    count = cores() // params.runtime.threads
    if count < 2:
        return 1
    from rarlhf.training.estimate import available_memory, stage_memory

    free = available_memory()
    try:
        needed = stage_memory(params)
    except UserError:  # stage `check` reports it
        return 1
    if free is None or needed is None:
        return 1
    return max(1, min(count, int(free // needed)))


def cores() -> int:
    """The cores that this process may use, at least one."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        work, period = QUOTA.read_text(encoding="utf-8").split()
        return max(1, min(count, int(work) // int(period)))
    except (OSError, ValueError):  # not in a container, or one without a limit
        return count


def shares(devices: list[str], parallel: int | None) -> list[dict[str, str]]:
    """What tasks that run at the same time add to their environment, one entry for each.

    Args:
        devices: ids of the accelerators.
        parallel: how many tasks run at the same time; where None, one for each accelerator, or one on a CPU.

    Returns: the accelerators, divided among the tasks. With fewer accelerators than tasks, several tasks use the same
        one. On a CPU there is nothing to add.
    """
    count = parallel or len(devices) or 1
    if not devices:
        return [{} for _ in range(count)]
    return [{VISIBLE: ",".join(devices[i::count] or [devices[i % len(devices)]])} for i in range(count)]


class Shares:
    """Shares of the machine: a task holds one while it runs, and others wait until one is free.

    Args:
        shares: what the holder of each adds to its environment.
    """

    def __init__(self, shares: Sequence[Mapping[str, str]]) -> None:
        self.number = len(shares)
        self._free: SimpleQueue[Mapping[str, str]] = SimpleQueue()
        for share in shares:
            self._free.put(share)

    @contextmanager
    def one(self) -> Iterator[Mapping[str, str]]:
        """Waits for a free share; it is free again at the end of the block."""
        share = self._free.get()
        try:
            yield share
        finally:
            self._free.put(share)
