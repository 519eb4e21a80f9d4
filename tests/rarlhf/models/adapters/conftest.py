"""Adapters of SFT on tiny backbones, in each way to hold the backbone."""

import json
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from rarlhf.config.params import Params
from rarlhf.decoding.prompts import left_pad
from rarlhf.messages.progress import SilentRecorder
from rarlhf.models.episodes import Episodes
from rarlhf.models.loading import save_model
from rarlhf.system.machine import Machine
from rarlhf.system.streams import generator
from rarlhf.training.sft import train_sft
from tests.rarlhf.models.adapters.tiny import CPU, MODES, PPO, QUERIES, RECORDS, gpt2, gptj, section, with_outliers


@pytest.fixture(params=[gpt2, gptj], ids=lambda make: make.__name__)
def base(
    request: pytest.FixtureRequest,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """`models/base` in a folder of its own, which becomes the current one."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(3)
    save_model(with_outliers(request.param(len(tokenizer))), tokenizer, Path("models/base"))
    return Path("models/base")


@pytest.fixture(params=list(MODES))
def mode(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def small(params: Params) -> Params:
    sft = params.sft.model_copy(update={"tokens": 12, "epochs": 4, "batch_size": 4, "micro_batch_size": 4, "lr": 0.02})
    risk = params.risk.model_copy(update={"warmup": 1, "rho": 1.0, "alpha": 0.5})
    return params.model_copy(update={"ppo": params.ppo.model_copy(update=PPO), "sft": sft, "risk": risk})


@pytest.fixture(scope="session")
def adapters() -> dict[tuple[str, str], dict[str, bytes]]:
    """Files of the adapters that SFT has trained so far, by kind of model and mode."""
    return {}


@pytest.fixture
def sft(
    base: Path, mode: str, small: Params, machine: Machine, adapters: dict[tuple[str, str], dict[str, bytes]]
) -> Path:
    """An adapter that SFT has trained."""
    folder, key = Path("models/sft"), (json.loads((base / "config.json").read_text())["model_type"], mode)
    if key not in adapters:
        train_sft(RECORDS, base, folder, section(small, mode), small.sft, machine, SilentRecorder())
        adapters[key] = {path.name: path.read_bytes() for path in folder.iterdir()}
    folder.mkdir(exist_ok=True)
    for name, content in adapters[key].items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def episodes() -> Episodes:
    tokens, mask = left_pad(QUERIES[:5], 0, CPU)
    draws = generator("test")
    responses = torch.randint(3, 200, (5, 6), generator=draws)
    return Episodes(tokens, mask, responses, torch.ones_like(responses, dtype=torch.bool))
