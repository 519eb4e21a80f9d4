"""Checkpoints: what is written comes back, and a failure while writing leaves the old one."""

import resource
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import rarlhf.rl.checkpoint
import rarlhf.system.files
from rarlhf.config.errors import UserError
from rarlhf.rl.checkpoint import (
    load_checkpoint,
    load_training,
    refuse_other,
    restore_training,
    save_checkpoint,
    training_tensors,
)

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


def test_the_new_one_takes_the_place_of_the_old_one_in_one_step(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    save_checkpoint(path, TENSORS, STATE)
    before = path.read_bytes()
    with path.open("rb") as old:
        save_checkpoint(path, TENSORS, {"iteration": 5})
        assert old.read() == before  # renamed over it; a copy would have written into it
    assert path.read_bytes() != before


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

    monkeypatch.setattr(rarlhf.rl.checkpoint if step == "save_file" else rarlhf.system.files.os, step, fail)
    with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else UserError):
        save_checkpoint(path, {"a": torch.zeros(1)}, {})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_no_room_is_told_and_leaves_the_old_one(tmp_path: Path) -> None:
    """A real refusal by the file system, of files above a size."""
    path = tmp_path / "c.safetensors"
    limit, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for kept in ("there was none before it", "the one before it is kept"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
        try:
            with pytest.raises(
                UserError, match=rf"{path} could not be written \(.*File too large.*\); {kept}. Make room"
            ):
                save_checkpoint(path, {"a": torch.zeros(5000)}, {})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        assert not [file for file in tmp_path.iterdir() if file != path]
        save_checkpoint(path, TENSORS, STATE)
        assert load_checkpoint(path)[1] == STATE  # type: ignore[index]


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path: Path) -> None:
    left = tmp_path / ".c.safetensors.partial"
    left.mkdir()
    (left / ".tmpName").write_bytes(b"half")
    save_checkpoint(tmp_path / "c.safetensors", TENSORS, STATE)
    assert not left.exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint at all", "no state", "no JSON"])
def test_another_file_is_refused(content: bytes | str, tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        save_file(TENSORS, path, metadata=None if content == "no state" else {"state": "{"})
    with pytest.raises(UserError, match=f"{path} is not a checkpoint of a training .*; delete it to start over"):
        load_checkpoint(path)


def test_a_refusal_names_the_first_four_settings_that_differ() -> None:
    here = {"a": 1, "b": 2, "c": 3, "d": 4, "e": 5, "f": 6}
    refuse_other(Path("c"), here | {"of another version": 7}, here)
    with pytest.raises(UserError, match="another training: a = nothing there, 1 here. Give the values"):
        refuse_other(Path("c"), {name: value for name, value in here.items() if name != "a"}, here)
    line = "a = 0 there, 1 here; b = 0 there, 2 here; d = 0 there, 4 here; e = 0 there, 5 here; and 1 more. Give"
    with pytest.raises(UserError, match=line):
        refuse_other(Path("c"), {"a": 0, "b": 0, "c": 3, "d": 0, "e": 0, "f": 0}, here)


def start() -> tuple[torch.nn.Linear, torch.optim.Adam]:
    torch.manual_seed(0)
    layer = torch.nn.Linear(2, 3)
    return layer, torch.optim.Adam(layer.parameters(), lr=0.1)


def step(layer: torch.nn.Linear, optimizer: torch.optim.Adam, x: float) -> None:
    optimizer.zero_grad()
    layer(torch.tensor([x, 1.0])).square().sum().backward()
    optimizer.step()


def test_an_optimiser_goes_on_as_if_never_stopped() -> None:
    whole, optimizer = start()
    step(whole, optimizer, 1.0)
    kept = {name: tensor.clone() for name, tensor in training_tensors(whole, optimizer).items()}
    moments = {f"adam/{index}/{field}" for index in (0, 1) for field in ("step", "exp_avg", "exp_avg_sq")}
    assert set(kept) == {"policy/weight", "policy/bias"} | moments
    step(whole, optimizer, 3.0)

    again, fresh = start()
    restore_training(again, fresh, kept)
    before = {name: tensor.clone() for name, tensor in kept.items()}
    step(again, fresh, 3.0)
    assert torch.equal(again.weight, whole.weight)
    assert all(torch.equal(tensor, before[name]) for name, tensor in kept.items())  # they are not trained on

    cold, untold = start()
    restore_training(cold, untold, {name: tensor for name, tensor in kept.items() if name.startswith("policy/")})
    step(cold, untold, 3.0)  # negative control: without its moments
    assert not torch.equal(cold.weight, whole.weight)


@pytest.mark.parametrize(
    "wrong", [("policy/bias", "policy/other"), ("adam/0/step", "adam/2/step"), ("adam/1/exp_avg", "adam/2/exp_avg")]
)
def test_other_weights_are_refused(wrong: tuple[str, str], tmp_path: Path) -> None:
    layer, optimizer = start()
    step(layer, optimizer, 1.0)
    tensors = training_tensors(layer, optimizer)
    tensors[wrong[1]] = tensors.pop(wrong[0])
    path = tmp_path / "c.safetensors"
    save_checkpoint(path, tensors, {"settings": {}})
    with pytest.raises(UserError, match=f"{path} has other weights than this training .*; delete it to start over"):
        load_training(path, {}, layer, optimizer)


def test_a_checkpoint_of_a_former_version_is_refused_as_such(tmp_path: Path) -> None:
    layer, optimizer = start()
    step(layer, optimizer, 1.0)
    names = {"0": "weight", "1": "bias"}
    former = {
        f"adam/{names[name.split('/')[1]]}/{name.split('/')[2]}" if name.startswith("adam/") else name: tensor
        for name, tensor in training_tensors(layer, optimizer).items()
    }
    path = tmp_path / "c.safetensors"
    save_checkpoint(path, former, {"settings": {}})
    expected = f"{path} is a checkpoint of a former version of rarlhf; delete it to start over"
    with pytest.raises(UserError, match=expected):
        load_training(path, {"seed": 2}, layer, optimizer)  # and not as one of another training
