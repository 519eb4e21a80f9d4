"""This project's worker: `PPOTrainer` with the models and sizes that the peer gets."""

import json
import sys
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path

from transformers import AutoTokenizer, GPT2ForSequenceClassification, GPT2LMHeadModel

from benchmarks.setting import Setting
from benchmarks.worker import Reporter
from rarlhf.config.judging import RewardParams
from rarlhf.config.load import load_params
from rarlhf.config.params import KLParams, PPOParams, RiskParams, RuntimeParams
from rarlhf.messages.progress import SilentRecorder
from rarlhf.models.fused import fuse_activations
from rarlhf.models.policy import Policy, Sampling
from rarlhf.models.reference import frozen
from rarlhf.rewards.scorers import RewardModel
from rarlhf.rl.parts import Models, Recipe, Session
from rarlhf.rl.ppo import PPOTrainer
from rarlhf.system.machine import Machine, prepare

PRESET = load_params(Path(__file__).parents[1] / "presets" / "tiny.yaml")  # of what no setting changes
PHASES = ("decode", "score", "policy", "reference", "update")


class Phases(SilentRecorder):
    """Hands the seconds of each phase to the reporter."""

    def __init__(self, reporter: Reporter) -> None:
        self.reporter = reporter

    def record(self, step: int, values: Mapping[str, float]) -> None:
        """Takes an iteration's record."""
        self.reporter.phases = {name: values[f"time/{name}"] for name in PHASES}


def ppo_params(setting: Setting) -> PPOParams:
    """The preset's PPO with the setting's sizes."""
    work = setting.work
    sizes = {
        "batch_size": work.episodes,
        "mini_batch_size": work.episodes,
        "micro_batch_size": setting.micro_batch,
        "decode_batch_size": work.episodes,
        "rollout_logprobs": setting.rollout_logprobs,
        "epochs": work.epochs,
        "max_new_tokens": work.response_tokens,
        "min_new_tokens": work.response_tokens,
        "lr": 3e-6,  # the peer's default
        "value_lr": 3e-6,
        "value_clip": 0.2,
    }
    return PPOParams.model_validate(PRESET.ppo.model_dump() | sizes)


def risk_params(setting: Setting) -> RiskParams:
    """CVaR at the setting's level from the first iteration on; no risk where all episodes are kept."""
    measure = "none" if setting.keep == 1 else "cvar"
    values = {"measure": measure, "alpha": setting.keep, "warmup": 0, "rho": 1 / PRESET.ppo.iterations}
    return RiskParams.model_validate(PRESET.risk.model_dump() | values)


def trainer(setting: Setting, machine: Machine, reporter: Reporter) -> PPOTrainer:
    """A trainer on the models of `setting.folder`."""
    folder, work = Path(setting.folder), setting.work
    lm = GPT2LMHeadModel.from_pretrained(folder / "lm").to(machine.device)
    fuse_activations(lm)
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    classifier = GPT2ForSequenceClassification.from_pretrained(folder / "classifier")
    sizes = {"label": 0, "sign": 1, "max_length": work.query_tokens + work.response_tokens, "batch_size": work.episodes}
    reward_params = RewardParams.model_validate(PRESET.reward.model_dump() | sizes)
    policy = Policy(lm, Sampling(1.0, work.response_tokens, work.response_tokens, tokenizer.eos_token_id))
    score = RewardModel(classifier, tokenizer, reward_params, machine)
    kl = KLParams.model_validate(PRESET.kl.model_dump())
    return PPOTrainer(
        Models(policy, frozen(deepcopy(lm)), tokenizer, score),
        Recipe(ppo_params(setting), kl, risk_params(setting), seed=1),
        Session(machine, Phases(reporter)),
    )


def main() -> None:
    """Runs the setting on the command line, an iteration each turn."""
    setting = Setting.read(sys.argv[1])
    runtime = RuntimeParams(
        device="cpu", threads=setting.threads, precision=setting.precision, decode="eager", sharding="none"
    )
    machine = prepare(runtime)
    rows = json.loads((Path(setting.folder) / "queries.json").read_text(encoding="utf-8"))
    reporter = Reporter()
    engine = trainer(setting, machine, reporter)
    reporter.ready()
    for iteration in range(1, sys.maxsize):
        start = iteration * setting.work.episodes % len(rows)
        batch = rows[start : start + setting.work.episodes]
        engine.step(engine.collect_rollout(batch, iteration), iteration)
        reporter.done()


if __name__ == "__main__":
    main()
