"""Small trainings as they were recorded: float32 results change only on purpose.

A model of twelve words is trained for four iterations in each setting, and what each iteration saw and gave is compared
with tests/rarlhf/rl/trajectories/SETTING.json. Where numbers are to change, record them anew,

    RECORD_TRAJECTORIES=1 pytest tests/rarlhf/rl/test_trajectories.py

and write the reason in the commit that changes them. Each file names the versions of the libraries it was made with.

Other processors round otherwise, and Adam's first steps, which divide a gradient by its own size, make more of that.
So the weights at the start are fractions of integers, the same bits everywhere, and the tolerance is over ten times
what comes of an error of float32's own size (6e-8) in each of them; the test of rounding makes an error of 1e-6. Texts
and numbers of kept episodes are compared exactly: they stay the same with an error of 1e-4.
"""

import json
import os
from collections.abc import Mapping, Sequence
from copy import deepcopy
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from rarlhf.config.params import Params
from rarlhf.messages.progress import SilentRecorder
from rarlhf.models.adapters import new_adapter
from rarlhf.models.policy import Policy, Sampling
from rarlhf.models.reference import RefPolicy, frozen
from rarlhf.rl.parts import Models, Recipe, Session
from rarlhf.rl.ppo import PPOTrainer
from rarlhf.system.machine import Machine
from rarlhf.system.streams import generator
from tests.rarlhf.small import changed

FOLDER = Path(__file__).with_name("trajectories")
LIBRARIES = ("torch", "transformers", "peft")
WORDS = ["end", "ash", "bay", "cob", "dew", "elm", "fen", "gum", "hay", "ivy", "jam", "kelp"]
QUERIES = [[1 + i % 11] + [1 + (3 * i + k) % 11 for k in range(i % 3)] for i in range(20)]
RTOL, ATOL = 1e-4, 1e-5
VALUES: Mapping[str, object] = {
    "ppo.iterations": 4,
    "ppo.batch_size": 8,
    "ppo.mini_batch_size": 4,
    "ppo.micro_batch_size": 2,
    "ppo.decode_batch_size": 8,
    "ppo.epochs": 2,
    "ppo.lr": 0.002,
    "ppo.value_lr": 0.02,
    "ppo.value_warmup": 2,
    "ppo.value_clip": 0.05,
    "ppo.max_new_tokens": 5,
    "ppo.gamma": 0.97,
    "ppo.gae_lambda": 0.9,
    "ppo.averaged": 0.0,
    "ppo.checkpoint_every": 100,
    "kl.coef": 0.3,
    "kl.target": 0.1,
    "kl.controller": "paper",
    "kl.rate": 0.5,
    "kl.average": "kept",
    "kl.stop_above": None,
    "risk.alpha": 0.4,
    "risk.warmup": 1,
    "risk.rho": 1.0,
}
SETTINGS: Mapping[str, Mapping[str, object]] = {
    "none": {"risk.measure": "none"},
    "cvar": {"risk.measure": "cvar"},
    "cvar_lambda_return": {"risk.measure": "cvar", "risk.ranking": "lambda_return", "risk.count_from": 0},
    "cvar_ru": {"risk.measure": "cvar_ru"},
    "cvar_ru_running_eta": {"risk.measure": "cvar_ru", "risk.eta": "running", "risk.eta_rate": 0.5},
    "cvar_ru_of_score": {"risk.measure": "cvar_ru", "risk.of": "score", "risk.eta": 0.5},
    "cvar_paying": {"risk.measure": "cvar", "risk.dropped": "pay_kl", "risk.ranking": "random"},
    "entropic": {"risk.measure": "entropic", "risk.temperature": 0.5},
    "evar": {"risk.measure": "evar"},
    "mean_cvar": {"risk.measure": "mean_cvar", "risk.critic": "all"},
    "hard_prompts": {"risk.measure": "cvar", "risk.hard_share": 0.5, "risk.critic": "all", "risk.ranking": "value"},
    "lora": {"risk.measure": "cvar"},
    "query_baseline": {
        "risk.measure": "cvar_ru",
        "ppo.responses": 4,
        "ppo.baseline": "query",
        "ppo.averaged": 0.5,
    },
    "query_baseline_of_kept": {"risk.measure": "cvar", "ppo.responses": 4, "ppo.baseline": "query"},
}
NUMBERS = (
    "objective/kl",
    "objective/kl_coef",
    "objective/score_mean",
    "policy/approx_kl",
    "policy/clip_fraction",
    "policy/loss",
    "policy/ratio_max",
    "risk/objective",
    "value/explained_variance",
    "value/loss",
)
MOVED = {"lora": ("lora_A", "lora_B", "value_head"), "whole": ("wte", "attn.c_proj", "mlp.c_fc", "value_head")}


@torch.no_grad()
def filled(model: torch.nn.Module, size: float) -> None:
    """Fills the trained weights with whole numbers of two-hundredths of `size`, which every machine makes alike."""
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            start = 1.0 if "ln_" in name and name.endswith("weight") else 0.0
            whole = torch.randint(-200, 201, weight.shape, generator=generator("weights", name.replace("lm.", "")))
            weight.copy_(start + size * whole / 200)


@torch.no_grad()
def shaken(model: torch.nn.Module, off: float) -> None:
    """Puts a relative error up to `off` on every weight."""
    draws = generator("errors")
    for weight in model.parameters():
        weight.mul_(1 + off * (2 * torch.rand(weight.shape, generator=draws) - 1))


def start(adapter: bool, off: float, params: Params) -> tuple[Policy, RefPolicy]:
    """Policy and reference policy, with an error up to `off` on every weight."""
    shape = {"vocab_size": len(WORDS), "n_positions": 8, "n_embd": 8, "n_layer": 1, "n_head": 2}
    plain = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "eos_token_id": 0, "bos_token_id": 0}
    lm = GPT2LMHeadModel(GPT2Config(**shape, **plain))
    filled(lm, 0.8)
    shaken(lm, off)
    reference = frozen(deepcopy(lm))
    policy = Policy(lm, Sampling(0.9, 1, 5, end_id=0))
    filled(policy.value_head, 0.3)
    if adapter:
        lm.requires_grad_(False)
        new_adapter(lm, params.model.lora.model_copy(update={"r": 2, "alpha": 4}), seed=1)
        filled(lm, 0.1)
        shaken(lm, off)
    return policy, reference


def score_of(text: str) -> float:
    """Of its words; no two texts of different words are as good."""
    return sum((1.7 * WORDS.index(word)) ** 1.5 % 3.0 - 1.5 for word in text.split()) / 2


class Run:
    """A training, and what it showed."""

    def __init__(self, name: str, params: Params, machine: Machine, folder: Path, off: float = 0.0, **more: object):
        p = changed(params, {**VALUES, **SETTINGS[name], **more})
        policy, reference = start(name == "lora", off, params)
        self.texts: list[list[str]] = []
        words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="end"))
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="end", pad_token="end")
        trained = Models(policy, reference, tokenizer, self.score)
        self.trainer = PPOTrainer(trained, Recipe(p.ppo, p.kl, p.risk, 1), Session(machine, SilentRecorder()))
        self.trained = {name: weight for name, weight in policy.named_parameters() if weight.requires_grad}
        self.before = {name: weight.detach().clone() for name, weight in self.trained.items()}
        self.iterations: list[dict[str, Any]] = []
        keep = self.trainer.keep
        self.trainer.keep = lambda record: self.note(keep(record), name)
        self.trainer.train(QUERIES, folder / "c.safetensors")
        if p.ppo.averaged:
            averaged = {f"averaged/{group}": self.moved(group) for group in MOVED["whole"]}
            self.iterations[-1]["numbers"] |= averaged

    def score(self, texts: Sequence[str]) -> Tensor:
        self.texts.append(list(texts))
        return torch.tensor([score_of(text) for text in texts])

    def note(self, record: dict[str, float], name: str) -> dict[str, float]:
        """Keeps an iteration's numbers, and how far groups of weights are from where they began."""
        moved = {group: self.moved(group) for group in MOVED.get(name, MOVED["whole"])}
        numbers = {key: record[key] for key in NUMBERS} | {f"moved/{group}": size for group, size in moved.items()}
        seen = {"texts": self.texts, "kept": record["risk/kept"]}  # those of the warm-up stand with the first
        self.iterations.append({**seen, "numbers": numbers})
        self.texts = []
        return record

    def moved(self, group: str) -> float:
        """Euclidean norm."""
        parts = [(w.detach() - self.before[name]).flatten() for name, w in self.trained.items() if group in name]
        return float(torch.cat(parts).norm())


@pytest.fixture(autouse=True)
def one_thread(restored: None) -> None:
    torch.set_num_threads(1)


def versions() -> dict[str, str]:
    return {name: version(name) for name in LIBRARIES}


def agree(one: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]], message: str = "") -> None:
    """Fails at the first iteration that differs."""
    assert len(one) == len(other), message
    for m, (here, there) in enumerate(zip(one, other, strict=True), start=1):
        assert here["texts"] == there["texts"], f"iteration {m}: other texts{message}"
        assert here["kept"] == there["kept"], f"iteration {m}: others kept{message}"
        expected = pytest.approx(there["numbers"], rel=RTOL, abs=ATOL)
        assert here["numbers"] == expected, f"iteration {m}{message}"


@pytest.mark.parametrize("name", SETTINGS)
def test_a_training_is_as_it_was_recorded(name: str, params: Params, machine: Machine, tmp_path: Path) -> None:
    run, file = Run(name, params, machine, tmp_path), FOLDER / f"{name}.json"
    if os.environ.get("RECORD_TRAJECTORIES") == "1":
        FOLDER.mkdir(exist_ok=True)
        recorded = {"versions": versions(), "iterations": run.iterations}
        file.write_text(json.dumps(recorded, indent=1) + "\n", encoding="utf-8")
        pytest.skip(f"{file.name} is recorded anew")
    there = json.loads(file.read_text(encoding="utf-8"))
    agree(
        run.iterations, there["iterations"], f" ({file.name} was made with {there['versions']}, this is {versions()})"
    )


def recorded(name: str) -> list[dict[str, Any]]:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))["iterations"]


@pytest.mark.parametrize("name", ["hard_prompts", "lora"])  # those that rounding moves most
def test_rounding_stays_within_the_tolerance(name: str, params: Params, machine: Machine, tmp_path: Path) -> None:
    shaken_run = Run(name, params, machine, tmp_path, off=1e-6)
    assert shaken_run.iterations != recorded(name)
    agree(shaken_run.iterations, recorded(name))


@pytest.mark.parametrize("edit", [{"kl.coef": 0.303}, {"ppo.value_lr": 0.0202}, {"ppo.gae_lambda": 0.909}])
def test_a_hundredth_of_a_parameter_does_not(
    edit: dict[str, object], params: Params, machine: Machine, tmp_path: Path
) -> None:
    """Negative control."""
    with pytest.raises(AssertionError):
        agree(Run("cvar", params, machine, tmp_path, **edit).iterations, recorded("cvar"))


@pytest.mark.slow
def test_every_measure_is_plain_rlhf_bit_for_bit_at_alpha_one(params: Params, machine: Machine, tmp_path: Path) -> None:
    """But for the entropic one, which knows no alpha; and with hard prompts, of which there are none then."""
    settings = ("none", "cvar", "cvar_ru", "evar", "mean_cvar", "hard_prompts")
    plain = {"risk.alpha": 1.0, "risk.critic": "kept", "risk.ranking": "episode_return"}
    none, *others = (Run(name, params, machine, tmp_path / name, **plain) for name in settings)
    for run in others:
        for record, expected in zip(run.trainer.records, none.trainer.records, strict=True):
            # of sorted returns, the sum may round otherwise
            assert record | {"risk/objective": 0.0} == expected | {"risk/objective": 0.0}
            assert record["risk/objective"] == pytest.approx(expected["risk/objective"], rel=1e-6)
        assert all(torch.equal(weight, none.trained[name]) for name, weight in run.trained.items())
    assert recorded("cvar")[-1]["numbers"] != recorded("none")[-1]["numbers"]  # negative control: not so at alpha .4
