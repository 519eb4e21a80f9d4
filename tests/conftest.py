"""What all tests share."""

import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

# Tests run beside each other, one to a core; two jobs of two threads on two cores would wait for one another. Torch
# reads this as it is imported, here and in the processes that tests start.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# A shell's background jobs inherit a SIGINT that is ignored; the processes that tests start and interrupt must heed it.
signal.signal(signal.SIGINT, signal.default_int_handler)
# It says at every matrix product that it rounds to float16; the commands leave that out too.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

# The files that take longest go first, so that no worker is left with one of them at the end.
LONG = (
    "test_pipeline.py",
    "flows/test_deploy.py",
    "tasks/test_repro.py",
    "flows/test_pipeline.py",
    "flows/test_ablation.py",
    "rarlhf/test_kill.py",
    "benchmarks/test_run.py",
    "tasks/test_tracking.py",
    "tasks/test_paper_presets.py",
    "rarlhf/test_distributed.py",
    "rarlhf/test_compiled.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the files of LONG first; the order within a file stays."""
    here = Path(__file__).parent
    ranks = {here / name: rank for rank, name in enumerate(LONG)}
    items.sort(key=lambda item: ranks.get(item.path, len(LONG)))


@pytest.fixture
def restored() -> Iterator[None]:
    """Puts the process's threads and determinism back."""
    import torch

    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)
