"""Small real models and tokenizers, made once for all tests of the library."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel, PreTrainedTokenizerBase

    from rarlhf.config.params import Params
    from rarlhf.rl.ppo import PPOTrainer
    from rarlhf.system.machine import Machine


@pytest.fixture(scope="session")
def tokenizer() -> "PreTrainedTokenizerBase":
    """A byte-level BPE tokenizer of a few texts."""
    from rarlhf.training.base import train_tokenizer
    from tests.rarlhf.small import SHAPE, TEXTS

    return train_tokenizer(TEXTS, SHAPE)


@pytest.fixture
def lm(tokenizer: "PreTrainedTokenizerBase") -> "GPT2LMHeadModel":
    """A model of its own for each test, as `new_lm` makes it."""
    from tests.rarlhf.small import new_lm

    return new_lm(tokenizer)


@pytest.fixture
def shifted(lm: "GPT2LMHeadModel") -> "tuple[GPT2LMHeadModel, GPT2LMHeadModel]":
    """As `shifted_twins` makes them."""
    from tests.rarlhf.small import shifted_twins

    return shifted_twins(lm)


@pytest.fixture(scope="session")
def machine() -> "Machine":
    """The CPU in float32."""
    import torch

    from rarlhf.system.machine import Machine

    return Machine(torch.device("cpu"), torch.float32)


@pytest.fixture(scope="session")
def params() -> "Params":
    """The default preset."""
    from tests.rarlhf.small import PRESET

    return PRESET


@pytest.fixture
def lm_folder(lm: "GPT2LMHeadModel", tokenizer: "PreTrainedTokenizerBase", tmp_path: Path) -> Path:
    """The model with its tokenizer, as `from_pretrained` loads it."""
    from rarlhf.models.loading import save_model

    folder = tmp_path / "lm"
    save_model(lm, tokenizer, folder)
    return folder


@pytest.fixture
def make_trainer(
    lm: "GPT2LMHeadModel", tokenizer: "PreTrainedTokenizerBase", machine: "Machine", params: "Params"
) -> "Callable[..., PPOTrainer]":
    """As `trainer_maker` says."""
    from tests.rarlhf.small import trainer_maker

    return trainer_maker(lm, tokenizer, machine, params)
