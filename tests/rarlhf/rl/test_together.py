"""Checkpoints of divided weights: one file of each process, which are of one iteration after a kill at any moment."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from rarlhf.config.errors import UserError
from rarlhf.rl.together import load_together, save_together
from rarlhf.system.distributed import World


class Killed(BaseException):
    pass


class Turn(World):
    """One of two processes, whose turn it is; the test lets them take turns, so nobody waits.

    Attributes:
        left: meetings of the processes until this one is killed.
        faults: what the other process tells.
    """

    size = 2

    def __init__(self, rank: int, left: int = 9, faults: tuple[str, ...] = ()) -> None:
        self.rank, self.left, self.faults = rank, left, faults

    def max(self, x: float) -> float:
        self.left -= 1
        if self.left < 0:
            raise Killed
        return x

    def gather(self, part: Any) -> list[Any]:
        return [part, *self.faults]


def save(path: Path, iteration: int, first: int = 9, second: int = 9) -> None:
    """Saves; each process is killed at that meeting, counted from 0."""
    for rank, left in ((1, second), (0, first)):
        tensors = {"x": torch.tensor([10.0 * iteration + rank])}
        with suppress(Killed):
            save_together(path, tensors, {"iteration": iteration}, Turn(rank, left), True)


def loaded(path: Path) -> list[float]:
    found = [load_together(path, Turn(rank), True) for rank in (0, 1)]
    return [float(tensors["x"]) for tensors, _ in filter(None, found)]


def test_each_process_gets_its_own_part(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    assert load_together(path, Turn(0), True) is None
    save(path, 2)
    assert loaded(path) == [20.0, 21.0]
    save(path, 4)
    assert loaded(path) == [40.0, 41.0]
    assert {file.name for file in tmp_path.iterdir()} == {"c.safetensors", "c.1.4.safetensors"}


@pytest.mark.parametrize(("first", "second", "expected"), [(0, 0, 2), (9, 1, 4), (1, 1, 4), (9, 9, 4)])
def test_a_kill_leaves_the_parts_of_one_iteration(first: int, second: int, expected: int, tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    save(path, 2)
    save(path, 4, first, second)
    assert loaded(path) == [10.0 * expected, 10.0 * expected + 1]


def test_a_part_that_is_missing_or_broken_is_told_in_every_process(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    save(path, 2)
    part = tmp_path / "c.1.2.safetensors"
    part.write_bytes(b"nothing")
    with pytest.raises(UserError, match=f"{path} is a part of .*{part} is not a checkpoint of a training"):
        load_together(path, Turn(1), True)
    part.unlink()
    with pytest.raises(
        UserError, match=f"{path} is a part of a checkpoint, and {part} is missing. Run each process in"
    ):
        load_together(path, Turn(1), True)
    with pytest.raises(UserError, match="is a part of a checkpoint, and the other's is missing. Run"):
        load_together(path, Turn(0, faults=("the other's is missing",)), True)


def test_of_whole_weights_the_first_process_writes_alone(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    for rank in (1, 0):
        save_together(path, {"x": torch.ones(1)}, {"iteration": 1}, Turn(rank, left=0), False)
        assert path.is_file() == (rank == 0)
    found = load_together(path, Turn(0), False)
    assert found is not None and found[1] == {"iteration": 1}
