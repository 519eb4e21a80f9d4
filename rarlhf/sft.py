"""Supervised fine-tuning on the texts of the wanted class, by trl's SFTTrainer."""

import warnings
from collections.abc import Sequence
from pathlib import Path

from datasets import Dataset
from transformers import Trainer
from trl import SFTConfig, SFTTrainer

from rarlhf.errors import UserError
from rarlhf.loading import load_causal_lm, save_model
from rarlhf.params import SFTParams
from rarlhf.progress import Recorder
from rarlhf.runtime import Machine
from rarlhf.supervised import run_trainer, steps_in, training_options


def train_sft(
    texts: Sequence[str], base: Path, folder: Path, params: SFTParams, machine: Machine, recorder: Recorder
) -> list[dict[str, float]]:
    """Fine-tunes the model in `base` and writes it to `folder`; returns its curve.

    Texts are cut to `sft.tokens`, not packed; those that fit end with the end of text, which is learned.

    Args:
        texts: texts of the wanted class.
        base: folder of the base model.
        folder: where the result is written.
        params: section `sft`.
        machine: device and precision.
        recorder: takes the loss.
    Raises: UserError if there is no text.
    """
    if not texts:
        raise UserError("no training row is of the wanted class (label 1), so there is nothing to fine-tune on")
    model, tokenizer = load_causal_lm(str(base))
    steps = steps_in(len(texts), params.batch_size, params.epochs)
    options = training_options(machine, params.epochs, params.batch_size, params.lr, "linear", params.seed, steps)
    rows = Dataset.from_dict({"text": list(texts)})

    def build(scratch: str) -> Trainer:
        keywords = options | {"remove_unused_columns": True, "gradient_checkpointing": False}
        with warnings.catch_warnings():  # trl sets this option under the name that transformers is giving up
            warnings.filterwarnings("ignore", "`gradient_checkpointing` is deprecated", FutureWarning)
            config = SFTConfig(output_dir=scratch, max_length=params.tokens, packing=False, **keywords)
        return SFTTrainer(model, config, train_dataset=rows, processing_class=tokenizer)

    recorder.say(f"{len(texts):,} texts, {steps:,} steps of {params.batch_size}")
    curve = run_trainer("sft", build, steps, recorder)
    save_model(model, tokenizer, folder)
    return curve
