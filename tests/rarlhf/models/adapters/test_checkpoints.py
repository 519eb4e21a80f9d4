"""Checkpoints of a training by an adapter."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from torch import Tensor

from rarlhf.config.params import Params
from rarlhf.messages.progress import SilentRecorder
from rarlhf.models.backbone import AdapterModel
from rarlhf.rl.checkpoint import load_checkpoint
from rarlhf.rl.parts import Session
from rarlhf.system.machine import Machine
from rarlhf.training.rlhf import Places, train_policy
from tests.rarlhf.models.adapters.tiny import CPU, QUERIES, lengths, make_trainer, section


def test_a_killed_run_goes_on_to_the_same_bytes(sft: Path, mode: str, small: Params, machine: Machine) -> None:
    def train(name: str, score: Callable[[Sequence[str]], Tensor]) -> bytes:
        params = small.model_copy(update={"model": section(small, mode)})
        places = Places(sft, Path(name), Path(f"{name}.safetensors"))
        train_policy(QUERIES, places, score, params, Session(machine, SilentRecorder()), seed=1)
        return (Path(name) / "adapter_model.safetensors").read_bytes()

    calls = 0

    def failing(texts: Sequence[str]) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 4:  # one call of the warm-up, and iterations 1, 2 and 3
            raise KeyboardInterrupt
        return lengths(texts)

    whole = train("whole", lengths)
    with pytest.raises(KeyboardInterrupt):
        train("killed", failing)
    assert Path("killed.safetensors").is_file()
    assert train("killed", lengths) == whole
    assert (sft / "adapter_model.safetensors").read_bytes() != whole


def test_a_checkpoint_holds_what_is_trained_alone(sft: Path, mode: str, small: Params, machine: Machine) -> None:
    start = AdapterModel(sft, section(small, mode), 1, CPU)
    make_trainer(start, small, machine).train(QUERIES, Path("checkpoint.safetensors"))
    loaded = load_checkpoint(Path("checkpoint.safetensors"))
    assert loaded is not None
    weights = {name.removeprefix("policy/") for name in loaded[0] if name.startswith("policy/")}
    trained = {f"lm.{name}" for name, value in start.lm.named_parameters() if value.requires_grad}
    assert weights == trained | {"value_head.weight", "value_head.bias"}
    elements = sum(value.numel() for value in start.lm.parameters() if value.requires_grad) + 17
    size = sum(tensor.numel() for name, tensor in loaded[0].items() if not name.endswith("/step"))
    assert size == 3 * elements  # each with Adam's two moments
    names = json.loads(json.dumps(sorted(loaded[0])))
    header = len(json.dumps(names)) * 2 + 20_000  # names, shapes and the records
    assert Path("checkpoint.safetensors").stat().st_size < 4 * 3 * elements + header
