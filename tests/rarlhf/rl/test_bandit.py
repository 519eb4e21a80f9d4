"""Bandits, and sentences of such choices, in which the best mean and the best tail differ, learned by the real trainer.

Each starts half and half. The tail's own objective has local optima, so a start at either arm would decide the end.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from rarlhf.config.params import Params
from rarlhf.messages.progress import SilentRecorder
from rarlhf.models.policy import Policy, Sampling, reset_value_head
from rarlhf.models.reference import frozen
from rarlhf.rl.parts import Models, Recipe, Session
from rarlhf.rl.ppo import PPOTrainer
from rarlhf.system.machine import Machine
from rarlhf.system.streams import generator, seed_globals

pytestmark = pytest.mark.slow
Arm = dict[float, float]  # payoff: probability
Edits = dict[str, Any]
NONE: Edits = {}
END = 0
PPO: Edits = {
    "iterations": 100,
    "batch_size": 64,
    "mini_batch_size": 64,
    "micro_batch_size": 64,
    "epochs": 2,
    "lr": 0.003,
    "value_lr": 0.05,
    "value_warmup": 5,
    "checkpoint_every": 1000,
}
SIZES = ("batch_size", "mini_batch_size", "micro_batch_size")
SAFE, RISKY = {0.5: 1.0}, {1.0: 0.9, -2.0: 0.1}  # means .5 and .7, means of the worst fifth .5 and -.5
BAD = {-3.0: 0.7, -4.0: 0.2, -5.0: 0.1}  # spread out: where one value holds the whole tail, CVaR is flat


def start() -> tuple[GPT2LMHeadModel, PreTrainedTokenizerFast]:
    """A GPT-2 of one layer that draws either of two words with probability one half, and its tokenizer."""
    seed_globals("bandit")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"end": END, "first": 1, "second": 2}, unk_token="end")),
        eos_token="end",
        pad_token="end",
    )
    shape = {"vocab_size": 3, "n_positions": 5, "n_embd": 8, "n_layer": 1, "n_head": 2, "tie_word_embeddings": False}
    plain = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "eos_token_id": END, "bos_token_id": END}
    lm = GPT2LMHeadModel(GPT2Config(**shape, **plain))
    with torch.no_grad():
        lm.lm_head.weight.zero_()
    return lm, tokenizer


def payoff(words: dict[str, Arm], seed: int) -> Callable[[Sequence[str]], Tensor]:
    """Draws the payoff of each word of a text and adds them up."""
    draws = generator("payoff", seed)

    def drawn(word: str) -> float:
        arm = words[word]
        return list(arm)[int(torch.multinomial(torch.tensor(list(arm.values())), 1, generator=draws))]

    return lambda texts: torch.tensor([sum(drawn(word) for word in text.split()) for text in texts])


@pytest.fixture
def learned(params: Params, machine: Machine, tmp_path: Path) -> Callable[..., float]:
    """Share of the second word after training, in responses of `length` words."""

    def train(  # noqa: PLR0917
        measure: str,
        first: Arm,
        second: Arm,
        seed: int,
        risk: Edits = NONE,
        ppo: Edits = NONE,
        length: int = 1,
        beta: float = 0.0,
    ) -> float:
        lm, tokenizer = start()
        policy = Policy(deepcopy(lm), Sampling(1.0, length, length, END))  # the end cannot be drawn
        reset_value_head(policy.value_head, generator("value_head", seed))
        ppo_params = params.ppo.model_copy(update=PPO | {"max_new_tokens": length} | ppo)
        kl = params.kl.model_copy(update={"coef": beta, "controller": "paper", "rate": 0.0})
        averse = {"measure": measure, "alpha": 0.2, "warmup": 0, "rho": 0.1, "temperature": 0.5, "mix": 0.7}
        risk_params = params.risk.model_copy(update=averse | risk)
        score = payoff({"first": first, "second": second}, seed)
        trained = Models(policy, frozen(lm), tokenizer, score)
        trainer = PPOTrainer(trained, Recipe(ppo_params, kl, risk_params, seed), Session(machine, SilentRecorder()))
        trainer.train([[END]] * ppo_params.batch_size, tmp_path / f"{len(list(tmp_path.iterdir()))}.safetensors")
        return float((trainer.generate([[END]] * 2000, iteration=10_000).responses == 2).float().mean())

    return train


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_mean_learns_risky_and_the_tail_learns_safe(seed: int, learned: Callable[..., float]) -> None:
    assert learned("none", SAFE, RISKY, seed) > 0.9
    assert learned("cvar", SAFE, RISKY, seed) < 0.1


TAILS: list[tuple[str, Edits]] = [
    ("cvar", {"critic": "all"}),
    ("cvar_ru", {}),
    ("cvar_ru", {"eta": "running", "eta_rate": 0.1}),
    ("entropic", {}),
    ("evar", {}),
    ("mean_cvar", {}),
]
# Larger than for hard selection: advantages are whitened batch by batch, so that a batch in which the loss did not show
# pulls towards risky as strongly as the others pull away. And a critic that knows its mean: uncentred advantages take
# its error for signal.
PATIENT: Edits = dict.fromkeys(SIZES, 256) | {"iterations": 80, "value_lr": 0.005, "value_warmup": 60}


# Risky by entropy at T .5: -.5 log(.9 exp(-2) + .1 exp(4)) = -.87; mixture .3 x .7 + .7 x -.5 = -.14: both below .5.
@pytest.mark.parametrize(("measure", "risk"), TAILS)
def test_every_tail_measure_learns_safe(measure: str, risk: Edits, learned: Callable[..., float]) -> None:
    assert learned(measure, SAFE, RISKY, 1, risk, PATIENT) < 0.3


@pytest.mark.parametrize("eta", ["batch", 0.5])
def test_the_tail_of_the_score_learns_safe_under_a_penalty_that_all_pay(
    eta: object, learned: Callable[..., float]
) -> None:
    # Beta .1: between probabilities p and 1 - p of risky, .1 log(p / (1 - p)) pays against u, which at eta .5 is .5 on
    # safe and .5 + .1 (0 - 12.5) = -.75 on risky.
    assert learned("cvar_ru", SAFE, RISKY, 1, {"of": "score", "eta": eta}, PATIENT, beta=0.1) < 0.3


@pytest.mark.parametrize(("measure", "risk"), [("none", {}), ("cvar", {}), *TAILS])
def test_all_learn_risky_where_the_other_arm_is_bad(measure: str, risk: Edits, learned: Callable[..., float]) -> None:
    """Negative control: a tail measure does not simply shun what varies, nor prefer the first arm."""
    assert learned(measure, BAD, RISKY, 1, risk) > 0.9


def test_sentences_of_three_choices(learned: Callable[..., float]) -> None:
    """Means 2.1 and 1.5; of three risky words 27 % lose at least once, so their worst fifth is at 0 or below."""
    assert learned("none", SAFE, RISKY, 1, length=3) > 0.9
    assert learned("cvar", SAFE, RISKY, 1, length=3) < 0.2
