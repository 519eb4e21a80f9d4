"""What all tests share."""

import logging
import signal
from collections.abc import Iterator

import pytest

# A shell's background jobs inherit a SIGINT that is ignored; the processes that tests start and interrupt must heed it.
signal.signal(signal.SIGINT, signal.default_int_handler)
# It says at every matrix product that it rounds to float16; the commands leave that out too.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


@pytest.fixture
def restored() -> Iterator[None]:
    """Puts the process's threads and determinism back."""
    import torch

    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)
