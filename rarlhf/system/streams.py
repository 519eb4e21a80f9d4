"""Random streams by name: each use of randomness draws from one of its own."""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derived_seed(*names: object) -> int:
    """A 63-bit seed that is a pure function of the names given, so that each use of randomness has its own stream."""
    digest = hashlib.sha256("/".join(str(name) for name in names).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(*names: object) -> torch.Generator:
    """A CPU generator seeded by `derived_seed`."""
    return torch.Generator().manual_seed(derived_seed(*names))


def seed_globals(*names: object) -> None:
    """Seeds the global generators, for library code that draws from them (initial weights, trainers)."""
    seed = derived_seed(*names)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


@contextmanager
def globals_kept() -> Iterator[None]:
    """Gives the global generators back the state that they had, of accelerators too."""
    own, array = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(own)
            np.random.set_state(array)
