"""Small real models and tokenizers, made once for all tests of the library."""

from pathlib import Path

import pytest
import torch
from transformers import GPT2LMHeadModel, PreTrainedTokenizerBase

from rarlhf.base_model import new_model, train_tokenizer
from rarlhf.params import Params, load_params
from rarlhf.runtime import Machine
from rarlhf.supervised import save_model

TEXTS = ["we liked the film .", "we saw the music .", "we regret the old plot and the weak end ."]
PRESET = load_params(Path(__file__).parents[2] / "presets" / "tiny.yaml")
SMALL = {"vocab_size": 280, "context": 32, "layers": 2, "width": 16, "heads": 2, "init_std": 0.3, "batch_size": 2}
SHAPE = PRESET.model.scratch.model_copy(update=SMALL)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    """A byte-level BPE tokenizer of a few texts."""
    return train_tokenizer(TEXTS, SHAPE)


@pytest.fixture
def lm(tokenizer: PreTrainedTokenizerBase) -> GPT2LMHeadModel:
    """A GPT-2-shaped model with random weights whose distributions are far from uniform and whose texts end."""
    model = new_model(tokenizer, SHAPE).eval()
    with torch.no_grad():  # adds 4 to the logit of the end of text, so that responses end at unlike lengths
        end = model.transformer.wte.weight[tokenizer.eos_token_id]
        model.transformer.ln_f.bias.copy_(4.0 * end / end.square().sum())
    return model


@pytest.fixture(scope="session")
def machine() -> Machine:
    """The CPU in float32."""
    return Machine(torch.device("cpu"), torch.float32)


@pytest.fixture(scope="session")
def params() -> Params:
    """The default preset."""
    return PRESET


@pytest.fixture
def lm_folder(lm: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> Path:
    """The model with its tokenizer, as `from_pretrained` loads it."""
    folder = tmp_path / "lm"
    save_model(lm, tokenizer, folder)
    return folder
