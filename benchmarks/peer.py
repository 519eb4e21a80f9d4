"""The peer's worker: trl.experimental.ppo of TRL 1.12.0, the last release with a PPO, in its own environment."""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import (
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    TrainerCallback,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

from benchmarks.setting import Setting
from benchmarks.worker import Reporter

ITERATIONS = 1000  # more than is ever asked for


class Turns(TrainerCallback):
    """Lets the training run one iteration a turn."""

    def __init__(self, reporter: Reporter) -> None:
        self.reporter = reporter

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Before the first iteration."""
        self.reporter.ready()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """After each iteration."""
        self.reporter.done()


def config(setting: Setting, folder: str) -> PPOConfig:
    """The peer at its fastest: no gradient checkpointing, nothing logged, saved or sampled on the side."""
    work = setting.work
    return PPOConfig(
        output_dir=folder,
        use_cpu=True,
        bf16=setting.precision == "bfloat16",
        gradient_checkpointing=False,
        per_device_train_batch_size=setting.micro_batch,
        gradient_accumulation_steps=work.episodes // setting.micro_batch,
        num_mini_batches=1,
        num_ppo_epochs=work.epochs,
        total_episodes=ITERATIONS * work.episodes,
        local_rollout_forward_batch_size=work.episodes,
        response_length=work.response_tokens,
        temperature=1.0,
        num_sample_generations=0,
        report_to="none",
        logging_steps=ITERATIONS,
        save_strategy="no",
        disable_tqdm=True,
        optim="adamw_torch_fused",
        seed=1,
    )


def trainer(setting: Setting, reporter: Reporter, output: str) -> PPOTrainer:
    """A trainer on the models of `setting.folder`; frozen ones are kept in the run's precision."""
    folder = Path(setting.folder)
    frozen = torch.bfloat16 if setting.precision == "bfloat16" else torch.float32
    rows = json.loads((folder / "queries.json").read_text(encoding="utf-8"))
    return PPOTrainer(
        args=config(setting, output),
        processing_class=PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer"),
        model=GPT2LMHeadModel.from_pretrained(folder / "lm"),
        ref_model=GPT2LMHeadModel.from_pretrained(folder / "lm", dtype=frozen),
        reward_model=GPT2ForSequenceClassification.from_pretrained(folder / "classifier", dtype=frozen),
        value_model=GPT2ForSequenceClassification.from_pretrained(folder / "lm", num_labels=1),
        train_dataset=Dataset.from_dict({"input_ids": rows}),
        callbacks=[Turns(reporter)],
    )


def main() -> None:
    """Runs the setting on the command line."""
    setting = Setting.read(sys.argv[1])
    torch.set_num_threads(setting.threads)
    reporter = Reporter()
    with tempfile.TemporaryDirectory() as output:
        engine = trainer(setting, reporter, output)
        time_phases(engine, reporter)
        engine.train()


def time_phases(engine: PPOTrainer, reporter: Reporter) -> None:
    """Counts the seconds of decoding and of scoring; what is left is passes of policy, reference and critic."""
    decode, get_reward = ppo_trainer.batch_generation, ppo_trainer.get_reward

    def timed_decode(*args: Any, **kwargs: Any) -> Any:
        with reporter.timed("decode"):
            return decode(*args, **kwargs)

    def timed_reward(model: Any, *args: Any, **kwargs: Any) -> Any:
        with reporter.timed("score" if model is engine.reward_model else "values"):
            return get_reward(model, *args, **kwargs)

    ppo_trainer.batch_generation, ppo_trainer.get_reward = timed_decode, timed_reward


if __name__ == "__main__":
    main()
