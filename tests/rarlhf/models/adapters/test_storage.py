"""In which numbers a backbone and its adapter are held."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import rarlhf.training.sft
from rarlhf.config.params import Params
from rarlhf.messages.progress import SilentRecorder
from rarlhf.models.backbone import AdapterModel
from rarlhf.models.episodes import Episodes
from rarlhf.system.machine import Machine
from rarlhf.training.sft import train_sft
from tests.rarlhf.models.adapters.tiny import CPU, QUERIES, RECORDS, logprobs, make_trainer, reference, section


def test_what_trl_rounds_is_float32_again(
    base: Path, small: Params, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds: list[set[torch.dtype]] = []

    def look(name: str, build: Callable[[str], Any], steps: int, recorder: object) -> list[dict[str, float]]:
        model = build("scratch").model
        kinds.append({value.dtype for value in model.parameters() if value.requires_grad})
        return []

    monkeypatch.setattr(rarlhf.training.sft, "run_trainer", look)
    train_sft(RECORDS, base, Path("sft"), section(small, "int8"), small.sft, machine, SilentRecorder())
    assert kinds == [{torch.float32}]


def test_a_bfloat16_backbone_stays_so_and_its_adapter_is_float32(
    base: Path, small: Params, machine: Machine, episodes: Episodes
) -> None:
    model = section(small, "lora", dtype="bfloat16")
    train_sft(RECORDS, base, Path("sft"), model, small.sft, machine, SilentRecorder())
    trainer = make_trainer(AdapterModel(Path("sft"), model, 1, CPU), small, machine)
    trainer.train(QUERIES, Path("checkpoint.safetensors"))
    kinds = {("lora_" in name, value.dtype) for name, value in trainer.policy.lm.named_parameters()}
    assert kinds == {(True, torch.float32), (False, torch.bfloat16)}
    assert (logprobs(trainer.policy.lm, episodes) - reference(trainer, episodes)).abs().max() > 0.01
