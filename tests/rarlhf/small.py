"""What the fixtures of the library's tests are made of: settings, a model, a trainer, and small helpers.

conftest.py imports this in its fixtures alone: the process that hands tests to others needs no model libraries.
"""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GPT2LMHeadModel, PreTrainedTokenizerBase

from rarlhf.config.load import load_params
from rarlhf.config.params import Params
from rarlhf.messages.progress import SilentRecorder
from rarlhf.models.policy import Policy, Sampling, reset_value_head
from rarlhf.models.reference import frozen
from rarlhf.rl.parts import Models, Recipe, Session
from rarlhf.rl.ppo import PPOTrainer
from rarlhf.system.machine import Machine
from rarlhf.system.streams import generator
from rarlhf.training.base import new_model

TEXTS = ["we liked the film .", "we saw the music .", "we regret the old plot and the weak end ."]
PRESET = load_params(Path(__file__).parents[2] / "presets" / "tiny.yaml")
SMALL = {"vocab_size": 280, "context": 32, "layers": 2, "width": 16, "heads": 2, "init_std": 0.3, "batch_size": 2}
SHAPE = PRESET.model.scratch.model_copy(update=SMALL)
# What a trainer in the tests is set to, where a test says nothing else.
PPO = {
    "ppo.iterations": 4,
    "ppo.batch_size": 6,
    "ppo.mini_batch_size": 3,
    "ppo.micro_batch_size": 3,
    "ppo.epochs": 2,
    "ppo.lr": 0.003,
    "ppo.value_warmup": 0,
    "ppo.max_new_tokens": 5,
    "ppo.averaged": 0.0,
    "ppo.checkpoint_every": 100,
    "kl.coef": 0.2,
    "kl.controller": "paper",
    "kl.stop_above": None,
    "risk.alpha": 0.5,
    "risk.warmup": 1,
    "risk.rho": 1.0,
}


def new_lm(tokenizer: PreTrainedTokenizerBase) -> GPT2LMHeadModel:
    """A GPT-2-shaped model with random weights whose distributions are far from uniform and whose texts end."""
    model = new_model(tokenizer, SHAPE).eval()
    with torch.no_grad():  # adds 4 to the logit of the end of text, so that responses end at unlike lengths
        end = model.transformer.wte.weight[tokenizer.eos_token_id]
        model.transformer.ln_f.bias.copy_(4.0 * end / end.square().sum())
    return model


def shifted_twins(lm: GPT2LMHeadModel) -> tuple[GPT2LMHeadModel, GPT2LMHeadModel]:
    """Two models of one distribution: the second one's logits are all lower by about 60, as GPT-2's are.

    Their last hidden states have -30 in column 0, which the first one's head leaves out.
    """
    with torch.no_grad():
        lm.transformer.ln_f.weight[0] = 0.0
        lm.transformer.ln_f.bias[0] = -30.0
    models = []
    for offset in (0.0, 2.03):
        model = deepcopy(lm)
        model.lm_head.weight = torch.nn.Parameter(lm.lm_head.weight.detach().clone())
        with torch.no_grad():
            model.lm_head.weight[:, 0] = offset
        models.append(model)
    return models[0], models[1]


def letters(texts: Sequence[str]) -> Tensor:
    """A rule-based score: ASCII letters in the text."""
    return torch.tensor([float(sum(c.isascii() and c.isalpha() for c in text)) for text in texts])


def changed(params: Params, values: dict[str, object]) -> Params:
    """The params with the values at dotted keys replaced."""
    for key, value in values.items():
        params = _replaced(params, key.split("."), value)
    return params


def _replaced(section: Any, keys: Sequence[str], value: object) -> Any:
    first, *others = keys
    inner = _replaced(getattr(section, first), others, value) if others else value
    return section.model_copy(update={first: inner})


def parts(trainer: PPOTrainer) -> tuple[Models, Recipe, Session]:
    """What a trainer was given, for another one that differs from it in something."""
    models = Models(trainer.policy, trainer.ref_policy, trainer.tokenizer, trainer.score, trainer.plain_prompts)
    recipe = Recipe(trainer.ppo, trainer.kl, trainer.risk, trainer.seed)
    return models, recipe, Session(trainer.machine, trainer.recorder, trainer.world)


class Keeping(SilentRecorder):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []

    def record(self, step: int, values: Mapping[str, float]) -> None:
        self.rows.append((step, dict(values)))


def trainer_maker(
    lm: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerBase, machine: Machine, params: Params
) -> Callable[..., PPOTrainer]:
    """Makes a trainer on copies of the same model; keywords change params, as in `make_trainer(**{"ppo.lr": 0.1})`."""

    def trainer(score: Callable[[Sequence[str]], Tensor] = letters, seed: int = 1, **values: object) -> PPOTrainer:
        p = changed(params, PPO | values)
        policy = Policy(deepcopy(lm), Sampling(0.8, 0, p.ppo.max_new_tokens, tokenizer.eos_token_id))
        reset_value_head(policy.value_head, generator("value_head", seed))
        models = Models(policy, frozen(deepcopy(lm)), tokenizer, score)
        return PPOTrainer(models, Recipe(p.ppo, p.kl, p.risk, seed), Session(machine, Keeping()))

    return trainer
