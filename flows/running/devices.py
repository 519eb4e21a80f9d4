"""Which accelerators there are, and their shares among tasks that run at the same time."""

import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from queue import SimpleQueue

VISIBLE = "CUDA_VISIBLE_DEVICES"


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
