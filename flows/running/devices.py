"""Which accelerators there are, and their shares among stages that run at the same time."""

import os
import subprocess

VISIBLE = "CUDA_VISIBLE_DEVICES"


def accelerators() -> list[str]:
    """Ids of the accelerators this process may use, as CUDA_VISIBLE_DEVICES writes them; empty on a CPU."""
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
    """What stages that run at the same time add to their environment, one entry for each.

    Args:
        devices: ids of the accelerators.
        parallel: how many stages run at the same time; where None, one for each accelerator, or one on a CPU.

    Returns: where there are as many accelerators as stages or more, the accelerators shared out; where there are fewer,
        several stages use the same one; on a CPU, nothing to add.
    """
    count = parallel or len(devices) or 1
    if not devices:
        return [{} for _ in range(count)]
    return [{VISIBLE: ",".join(devices[i::count] or [devices[i % len(devices)]])} for i in range(count)]
