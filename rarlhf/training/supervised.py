"""Supervised training of base, reward and SFT model with the trainers of transformers and trl."""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from accelerate.state import AcceleratorState, GradientState, PartialState
from torch.utils.data import Dataset
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from rarlhf.messages.progress import Recorder, Update, progress
from rarlhf.system.machine import Machine
from rarlhf.system.streams import derived_seed, globals_kept

CURVE_POINTS = 100
LossCurve = list[dict[str, float]]  # `step`, `loss` and `lr` of each logged step


class Seat(NamedTuple):
    """Where a training runs, who is told, and the seed of order and sampling."""

    machine: Machine
    recorder: Recorder
    seed: int


class CurveCallback(TrainerCallback):
    """Shows progress and collects step, loss and learning rate from the log."""

    def __init__(self, show: Update, recorder: Recorder) -> None:
        self.show = show
        self.recorder = recorder
        self.rows: LossCurve = []
        self.text = ""

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Adds a logged loss to the curve."""
        logs: Mapping[str, float] = kwargs.get("logs") or {}
        if "loss" not in logs:
            return
        self.rows.append({"step": state.global_step, "loss": logs["loss"], "lr": logs["learning_rate"]})
        self.recorder.record(state.global_step, {"train/loss": logs["loss"], "train/lr": logs["learning_rate"]})
        self.text = f"loss {logs['loss']:.3f}"

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Moves the bar."""
        self.show(state.global_step, self.text)


def training_options(  # noqa: PLR0913, each is a different thing
    machine: Machine, epochs: float, batch_size: int, lr: float, scheduler: str, seed: int, steps: int
) -> dict[str, Any]:
    """Options that all three trainings share, as keywords of transformers' TrainingArguments.

    Args:
        machine: device and precision.
        epochs: passes over the rows, may be a fraction.
        batch_size: rows per optimiser step.
        lr: peak rate of AdamW.
        scheduler: name of the learning-rate schedule.
        seed: order of the rows.
        steps: optimiser steps in all, which sets how often the loss is logged.
    """
    return {
        "num_train_epochs": epochs,
        "per_device_train_batch_size": batch_size,
        "learning_rate": lr,
        "lr_scheduler_type": scheduler,
        "seed": derived_seed("order", seed) % 2**31,
        "bf16": machine.dtype.itemsize == 2,
        "use_cpu": machine.device.type == "cpu",
        "logging_steps": max(1, steps // CURVE_POINTS),
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "dataloader_pin_memory": False,
    }


def steps_in(rows: int, batch_size: int, epochs: float) -> int:
    """Optimiser steps of a training."""
    return max(1, round(-(-rows // batch_size) * epochs))


def fit(  # noqa: PLR0913, each is a different thing
    name: str,
    model: PreTrainedModel,
    rows: Dataset[Any],
    collate: Callable[[Sequence[Any]], Mapping[str, Any]] | None,
    options: Mapping[str, Any],
    steps: int,
    recorder: Recorder,
) -> LossCurve:
    """Trains `model` in place with transformers' Trainer; returns its curve (step, loss, lr).

    Args:
        name: shown by the progress bar.
        model: any model of transformers that returns a loss.
        rows: examples.
        collate: makes a batch of examples; None for the Trainer's own.
        options: from `training_options`.
        steps: optimiser steps in all.
        recorder: takes the loss during training.
    """

    def build(folder: str) -> Trainer:
        return Trainer(model, TrainingArguments(folder, **options), data_collator=collate, train_dataset=rows)

    return run_trainer(name, build, steps, recorder)


def run_trainer(name: str, build: Callable[[str], Trainer], steps: int, recorder: Recorder) -> LossCurve:
    """Runs the trainer that `build` makes for a scratch folder, and returns its curve."""
    with tempfile.TemporaryDirectory() as folder, progress(name, steps) as show:
        curve = CurveCallback(show, recorder)
        trainer = build(folder)
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(curve)
        trainer.train()
    return curve.rows


@contextmanager
def apart() -> Iterator[None]:
    """What is drawn or trained inside leaves a training that goes on around it as it was.

    Trainers share the global generators, and accelerate keeps the device and the accumulation of gradients of all
    trainers of a process in one place.
    """
    shared = [kind._shared_state for kind in (AcceleratorState, GradientState, PartialState)]
    kept = [dict(state) for state in shared]
    with globals_kept():
        try:
            yield
        finally:
            for state, values in zip(shared, kept, strict=True):
                state.clear()
                state.update(values)
