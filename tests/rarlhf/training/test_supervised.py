"""What the supervised trainings share."""

from pathlib import Path

import pytest
import torch
from transformers import TrainingArguments

from rarlhf.system.machine import Machine
from rarlhf.training.supervised import CURVE_POINTS, steps_in, training_options


@pytest.mark.parametrize(
    ("rows", "batch_size", "epochs", "steps"),
    # ceil(10 / 4) = 3 steps a pass
    [(10, 4, 1, 3), (10, 4, 2, 6), (10, 4, 0.5, 2), (8, 4, 1, 2), (1, 64, 0.1, 1)],
)
def test_steps_by_hand(rows: int, batch_size: int, epochs: float, steps: int) -> None:
    assert steps_in(rows, batch_size, epochs) == steps


def test_options_are_transformers_own_and_save_and_report_nothing(machine: Machine, tmp_path: Path) -> None:
    options = training_options(machine, 1.5, 4, 0.01, "cosine", 3, 1000)
    arguments = TrainingArguments(str(tmp_path), **options)
    assert (arguments.num_train_epochs, arguments.per_device_train_batch_size) == (1.5, 4)
    assert (arguments.learning_rate, arguments.lr_scheduler_type) == (0.01, "cosine")
    assert arguments.logging_steps == 1000 // CURVE_POINTS
    assert (arguments.save_strategy, arguments.report_to, arguments.use_cpu) == ("no", [], True)
    assert not arguments.bf16
    assert training_options(machine, 1.5, 4, 0.01, "cosine", 4, 1000)["seed"] != options["seed"]
    assert training_options(machine, 1.5, 4, 0.01, "cosine", 3, 7)["logging_steps"] == 1
    reduced = Machine(torch.device("cpu"), torch.bfloat16)
    assert training_options(reduced, 1.0, 4, 0.01, "linear", 3, 7)["bf16"]
