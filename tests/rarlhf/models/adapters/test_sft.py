"""SFT of an adapter: what is trained and written."""

import json
from pathlib import Path

import peft
import pytest
import torch

from rarlhf.config.params import Params
from rarlhf.messages.progress import SilentRecorder
from rarlhf.models.adapters import storage_in_training
from rarlhf.models.backbone import AdapterModel
from rarlhf.system.machine import Machine
from rarlhf.training.sft import train_sft
from tests.rarlhf.models.adapters.tiny import CPU, MODES, RECORDS, section


def test_sft_trains_an_adapter_and_nothing_else(base: Path, mode: str, sft: Path, small: Params) -> None:
    assert {path.name for path in sft.iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}
    assert not (sft / "model.safetensors").exists()
    assert (sft / "adapter_model.safetensors").stat().st_size < (base / "model.safetensors").stat().st_size / 4
    config = json.loads((sft / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "models/base"  # no path of this machine
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (4, 8, 0)
    kind = json.loads((base / "config.json").read_text())["model_type"]
    assert config["fan_in_fan_out"] == (kind == "gpt2")  # whose matrices are transposed, also under 8 bits
    assert config["inference_mode"]
    assert storage_in_training(sft) == ("float32", "int8" if mode == "int8" else "none", 1e-9)
    loaded = AdapterModel(sft, section(small, mode), 1, CPU)
    trained = {name: value for name, value in loaded.model.named_parameters() if "lora_B" in name}
    assert len(trained) > 0
    assert all(value.dtype == torch.float32 and value.abs().max() > 1e-3 for value in trained.values())


def test_sft_learns_as_much_where_the_backbone_is_quantised(
    base: Path, small: Params, machine: Machine, tmp_path: Path
) -> None:
    curves = {
        mode: train_sft(RECORDS, base, Path(mode), section(small, mode), small.sft, machine, SilentRecorder())
        for mode in MODES
    }
    for curve in curves.values():
        assert curve[-1]["loss"] < 0.9 * curve[0]["loss"]
    assert curves["int8"][-1]["loss"] == pytest.approx(curves["lora"][-1]["loss"], rel=0.05)


def test_sft_gives_equal_bytes_and_recomputing_the_same_adapter(
    base: Path, mode: str, sft: Path, small: Params, machine: Machine
) -> None:
    for name, checkpointing in (("again", False), ("recomputed", True)):
        model = section(small, mode, gradient_checkpointing=checkpointing)
        train_sft(RECORDS, base, Path(name), model, small.sft, machine, SilentRecorder())
    files = ("adapter_config.json", "adapter_model.safetensors", "backbone.json")
    assert all((Path("again") / file).read_bytes() == (sft / file).read_bytes() for file in files)
    one, other = (peft.load_peft_weights(str(folder), device="cpu") for folder in (sft, "recomputed"))
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=1e-4, atol=1e-4)
