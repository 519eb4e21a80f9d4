"""From folders to a trained policy."""

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from rarlhf.config.errors import UserError
from rarlhf.config.params import Params
from rarlhf.messages.progress import SilentRecorder
from rarlhf.models.loading import load_causal_lm
from rarlhf.system.machine import Machine
from rarlhf.training.rlhf import train_policy

PPO = {
    "iterations": 2,
    "batch_size": 4,
    "mini_batch_size": 2,
    "micro_batch_size": 2,
    "epochs": 1,
    "value_warmup": 1,
    "max_new_tokens": 3,
}


@pytest.fixture
def small(params: Params) -> Params:
    risk = params.risk.model_copy(update={"warmup": 1, "rho": 1.0, "alpha": 0.5})
    return params.model_copy(update={"ppo": params.ppo.model_copy(update=PPO), "risk": risk})


def test_a_policy_is_trained_from_the_sft_model_and_saved(
    small: Params, lm_folder: Path, machine: Machine, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    def score(texts: list[str]) -> torch.Tensor:
        return torch.tensor([float(len(text)) for text in texts])

    queries = [tokenizer(text)["input_ids"] for text in ("we saw", "we liked", "we", "the film", "the plot")]
    arguments = (small, 3, machine, SilentRecorder())
    records = train_policy(queries, lm_folder, tmp_path / "a", tmp_path / "a.safetensors", score, *arguments)
    again = train_policy(queries, lm_folder, tmp_path / "b", tmp_path / "b.safetensors", score, *arguments)
    assert [record["risk/kept"] for record in records] == [4, 2]
    assert records == again
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()
    policy, loaded = load_causal_lm(str(tmp_path / "a"))
    start, _ = load_causal_lm(str(lm_folder))
    assert not torch.equal(policy.transformer.wte.weight, start.transformer.wte.weight)
    assert loaded.get_vocab() == tokenizer.get_vocab()


def test_a_full_memory_is_told_in_one_line(
    small: Params, lm_folder: Path, machine: Machine, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    def score(texts: list[str]) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 1 GiB")

    queries = [tokenizer(text)["input_ids"] for text in ("we saw", "we liked", "we", "the film", "the plot")]
    arguments = (tmp_path / "a", tmp_path / "a.safetensors", score, small, 3, machine, SilentRecorder())
    with pytest.raises(UserError, match=r"memory is full \(CUDA out of memory\); set ppo.micro_batch_size to auto"):
        train_policy(queries, lm_folder, *arguments)
    assert not (tmp_path / "a").exists()
