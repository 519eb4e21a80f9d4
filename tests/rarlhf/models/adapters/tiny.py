"""Tiny models, sections and trainers that the tests of adapters share."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, GPTJConfig, GPTJForCausalLM, PreTrainedModel

from rarlhf.config.params import ModelParams, Params
from rarlhf.messages.progress import SilentRecorder
from rarlhf.models.backbone import AdapterModel, WholeModel
from rarlhf.models.episodes import Episodes
from rarlhf.models.policy import Policy, Sampling, reset_value_head, response_logprobs, sampling_of
from rarlhf.rl.parts import Models, Recipe, Session
from rarlhf.rl.ppo import PPOTrainer
from rarlhf.system.machine import Machine
from rarlhf.system.streams import generator

TEXTS = ["we liked the film .", "we saw the music .", "we regret the old plot ."] * 4
RECORDS = [{"text": text} for text in TEXTS]
QUERIES = [[5 + i] * (1 + i % 3) for i in range(14)]
MODES = {"lora": {"adapter": "lora"}, "int8": {"adapter": "lora", "quantization": "int8"}}
CPU = torch.device("cpu")
END = {"bos_token_id": 0, "eos_token_id": 0}
PPO = {
    "iterations": 3,
    "batch_size": 6,
    "mini_batch_size": 3,
    "micro_batch_size": 3,
    "epochs": 2,
    "lr": 0.01,
    "value_warmup": 1,
    "max_new_tokens": 5,
    "checkpoint_every": 2,
}


def gpt2(size: int) -> PreTrainedModel:
    shape = {"vocab_size": size, "n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 2, "initializer_range": 0.15}
    return GPT2LMHeadModel(GPT2Config(**shape, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **END))


def gptj(size: int) -> PreTrainedModel:
    shape = {"vocab_size": size, "n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 2, "rotary_dim": 4}
    return GPTJForCausalLM(GPTJConfig(**shape, initializer_range=0.15, tie_word_embeddings=False, **END))


@torch.no_grad()
def with_outliers(lm: PreTrainedModel) -> PreTrainedModel:
    """LLM.int8 treats columns with a value above 6 apart: with such columns, companions in a batch matter."""
    for block in lm.transformer.h:
        block.ln_1.weight[:3] *= torch.tensor([3.0, 4.0, 5.0])
    return lm


def section(params: Params, mode: str, **values: object) -> ModelParams:
    lora = params.model.lora.model_copy(update={"r": 4, "alpha": 8})
    return params.model.model_copy(update={"lora": lora} | MODES[mode] | values)


def lengths(texts: Sequence[str]) -> Tensor:
    return torch.tensor([float(len(text)) for text in texts])


def make_trainer(start: AdapterModel | WholeModel, params: Params, machine: Machine) -> PPOTrainer:
    policy = Policy(start.lm, sampling_of(params, start.tokenizer.eos_token_id))
    reset_value_head(policy.value_head, generator("value_head", 1))
    models = Models(policy, start.ref_policy(), start.tokenizer, lengths)
    return PPOTrainer(models, Recipe(params.ppo, params.kl, params.risk, 1), Session(machine, SilentRecorder()))


@torch.no_grad()
def logprobs(lm: PreTrainedModel, episodes: Episodes) -> Tensor:
    return response_logprobs(lm, episodes, Sampling(1.0, 0, 6, 0))


def reference(trainer: PPOTrainer, episodes: Episodes) -> Tensor:
    with trainer.ref_policy() as lm:
        return logprobs(lm, episodes)
