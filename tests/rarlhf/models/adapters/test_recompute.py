"""Gradient checkpointing, of whole models and of adapters."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import rarlhf.training.rlhf
import rarlhf.training.sft
from rarlhf.config.errors import UserError
from rarlhf.config.params import Params
from rarlhf.data.batches import query_batch
from rarlhf.messages.progress import SilentRecorder
from rarlhf.models.backbone import AdapterModel, WholeModel
from rarlhf.models.policy import response_states
from rarlhf.models.recompute import recompute_blocks
from rarlhf.rl.parts import Session
from rarlhf.system.machine import Machine
from rarlhf.training.rlhf import Places, train_policy
from rarlhf.training.sft import train_sft
from tests.rarlhf.models.adapters.tiny import CPU, QUERIES, RECORDS, lengths, make_trainer, section


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "adapter"])
def test_recomputing_changes_no_number_and_remembers_less(
    whole: bool, base: Path, mode: str, small: Params, machine: Machine
) -> None:
    def step(recompute: bool) -> tuple[list[Tensor], int]:
        start = WholeModel(base, CPU) if whole else AdapterModel(base, section(small, mode), 1, CPU)
        if recompute:
            recompute_blocks(start.lm)
        trainer = make_trainer(start, small, machine)
        rollout = trainer.collect_rollout(query_batch(QUERIES, 0, 6, 1), 1)
        kept = 0

        def remember(tensor: Tensor) -> Tensor:
            nonlocal kept
            kept += tensor.numel() * tensor.itemsize
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
            response_states(start.lm, rollout.episodes)
        output = trainer.policy(rollout.episodes)
        output.logprobs.sum().backward()
        gradients = [value.grad for value in start.lm.parameters() if value.grad is not None]
        return [output.logprobs.detach(), rollout.logprobs, *gradients], kept

    (plain, much), (recomputed, less) = step(False), step(True)
    assert len(plain) == len(recomputed) > 3
    for one, other in zip(plain, recomputed, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-6, atol=1e-6)
    assert less < 0.3 * much


@pytest.mark.parametrize("asked", [True, False])
def test_training_recomputes_where_it_is_asked_to(
    asked: bool, base: Path, small: Params, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    sft_config = rarlhf.training.sft.SFTConfig

    def look(**keywords: Any) -> Any:
        seen.append(keywords["gradient_checkpointing"])
        return sft_config(**keywords)

    monkeypatch.setattr(rarlhf.training.sft, "SFTConfig", look)
    monkeypatch.setattr(rarlhf.training.rlhf, "recompute_blocks", lambda lm: seen.append(True))
    params = small.model_copy(update={"model": section(small, "lora", gradient_checkpointing=asked)})
    train_sft(RECORDS, base, Path("sft"), params.model, small.sft, machine, SilentRecorder())
    places = Places(Path("sft"), Path("rlhf"), Path("checkpoint.safetensors"))
    train_policy(QUERIES, places, lengths, params, Session(machine, SilentRecorder()), seed=1)
    assert seen == ([True, True] if asked else [False])


def test_a_model_without_blocks_cannot_be_recomputed(small: Params) -> None:
    with pytest.raises(UserError, match="Linear has no blocks of a known kind; set it to false"):
        recompute_blocks(torch.nn.Linear(2, 2))
