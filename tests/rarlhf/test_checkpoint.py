"""Checkpoints: what is written comes back, and a failure while writing leaves the old one."""

from pathlib import Path

import pytest
import torch

import rarlhf.checkpoint
from rarlhf.checkpoint import load_checkpoint, optimizer_tensors, restore_optimizer, save_checkpoint

TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(3, dtype=torch.int64)}
STATE = {"iteration": 4, "kl_coef": 0.1 + 0.2, "records": [{"x": 1e-300}]}


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "c.safetensors"
    save_checkpoint(path, TENSORS | {"turned": TENSORS["a"].t()}, STATE)
    loaded = load_checkpoint(path)
    assert loaded is not None
    tensors, state = loaded
    assert state == STATE  # floats to the last bit
    assert set(tensors) == {"a", "b", "turned"}
    assert torch.equal(tensors["a"], TENSORS["a"])
    assert torch.equal(tensors["turned"], TENSORS["a"].t())
    assert tensors["b"].dtype == torch.int64
    assert [file.name for file in path.parent.iterdir()] == ["c.safetensors"]


def test_there_is_none_where_none_was_written(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path / "c.safetensors") is None


@pytest.mark.parametrize("step", ["save_file", "fsync"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_while_writing_leaves_the_old_one(
    step: str, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c.safetensors"
    save_checkpoint(path, TENSORS, STATE)
    before = path.read_bytes()

    def fail(*arguments: object, **keywords: object) -> None:
        if step == "save_file":
            Path(str(arguments[1])).write_bytes(b"half")
        raise error

    monkeypatch.setattr(rarlhf.checkpoint if step == "save_file" else rarlhf.checkpoint.os, step, fail)
    with pytest.raises(type(error)):
        save_checkpoint(path, {"a": torch.zeros(1)}, {})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_an_optimiser_goes_on_as_if_never_stopped() -> None:
    def start() -> tuple[torch.nn.Linear, torch.optim.Adam]:
        torch.manual_seed(0)
        layer = torch.nn.Linear(2, 3)
        return layer, torch.optim.Adam(layer.parameters(), lr=0.1)

    def step(layer: torch.nn.Linear, optimizer: torch.optim.Adam, x: float) -> None:
        optimizer.zero_grad()
        layer(torch.tensor([x, 1.0])).square().sum().backward()
        optimizer.step()

    whole, optimizer = start()
    step(whole, optimizer, 1.0)
    names = {parameter: name for name, parameter in whole.named_parameters()}
    kept = {name: tensor.clone() for name, tensor in optimizer_tensors(optimizer, names).items()}
    assert set(kept) == {
        f"{name}/{field}" for name in ("weight", "bias") for field in ("step", "exp_avg", "exp_avg_sq")
    }
    weights = {name: value.clone() for name, value in whole.state_dict().items()}
    step(whole, optimizer, 3.0)

    again, fresh = start()
    again.load_state_dict(weights)
    restore_optimizer(fresh, {parameter: name for name, parameter in again.named_parameters()}, kept)
    step(again, fresh, 3.0)
    assert torch.equal(again.weight, whole.weight)

    cold, _ = start()
    cold.load_state_dict(weights)
    step(cold, torch.optim.Adam(cold.parameters(), lr=0.1), 3.0)  # negative control: without its moments
    assert not torch.equal(cold.weight, whole.weight)
