"""Supervised fine-tuning by trl's SFTTrainer."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, disable_progress_bars
from transformers import PreTrainedTokenizerBase, Trainer
from trl import SFTConfig, SFTTrainer

from rarlhf.config.errors import UserError
from rarlhf.config.params import ModelParams, SFTParams
from rarlhf.messages.progress import Recorder
from rarlhf.models.backbone import Trainable, load_trainable
from rarlhf.system.machine import Machine
from rarlhf.training.supervised import run_trainer, steps_in, training_options

MakeTrainer = Callable[[Trainable, SFTConfig, Dataset], SFTTrainer]


def plain_trainer(start: Trainable, config: SFTConfig, rows: Dataset) -> SFTTrainer:
    """The trainer of next-token prediction alone."""
    return SFTTrainer(start.model, config, train_dataset=rows, processing_class=start.tokenizer)


def train_sft(  # noqa: PLR0913, PLR0917, each is a different thing
    records: Sequence[Mapping[str, Any]],
    base: Path,
    folder: Path,
    model: ModelParams,
    params: SFTParams,
    machine: Machine,
    recorder: Recorder,
    make_trainer: MakeTrainer = plain_trainer,
) -> list[dict[str, float]]:
    """Fine-tunes the model in `base`, or an adapter on it, and writes that to `folder`; returns its curve.

    Texts are cut to `sft.tokens` and not packed. With `sft.end_of_text`, texts that fit end with the end of text, which
    is learned. Without it, and for texts that are cut, no end is learned. In a chat the template decides where an
    answer ends.

    Args:
        records: `text` or, in a chat, `messages` of each row to learn; not read if `sft.epochs` is 0. A key `related`
            beside `text` is handed to the trainer.
        base: folder of the base model.
        folder: where the result is written.
        model: section `model`, which decides what is trained.
        params: section `sft`.
        machine: device and precision.
        recorder: gets the loss.
        make_trainer: what has the loss.
    Raises: UserError if there is no text, or no text has two tokens.
    """
    start = load_trainable(base, model, params.seed, machine.device)
    if params.epochs == 0:
        recorder.say("sft.epochs is 0: the base model goes on as it is")
        start.save(folder)
        return []
    if not records:
        raise UserError("no training row is of the wanted class (label 1), so there is nothing to fine-tune on")
    disable_progress_bars()
    rows = Dataset.from_list(_learned(records, start.tokenizer, params, recorder))
    steps = steps_in(len(rows), params.batch_size, params.epochs)
    options = training_options(machine, params.epochs, params.micro_batch_size, params.lr, "linear", params.seed, steps)
    options["gradient_accumulation_steps"] = params.batch_size // params.micro_batch_size

    def build(scratch: str) -> Trainer:
        keywords = options | {"remove_unused_columns": True, "gradient_checkpointing": model.gradient_checkpointing}
        with warnings.catch_warnings():  # trl uses a name of this option that is deprecated in transformers
            warnings.filterwarnings("ignore", "`gradient_checkpointing` is deprecated", FutureWarning)
            config = SFTConfig(output_dir=scratch, max_length=params.tokens, packing=False, **keywords)
        return _in_float32(make_trainer(start, config, rows))

    recorder.say(f"{len(rows):,} texts, {steps:,} steps of {params.batch_size}")
    curve = run_trainer("sft", build, steps, recorder)
    start.save(folder)
    return curve


def _learned(
    records: Sequence[Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    params: SFTParams,
    recorder: Recorder,
) -> list[dict[str, Any]]:
    """What trl learns: token ids, to which it adds no end, or the messages of chats.

    Some tokenizers end every text themselves; such an end is removed unless it is asked for.
    """
    if "messages" in records[0]:
        return [dict(record) for record in records]
    encoded: Any = tokenizer([record["text"] for record in records], truncation=False, verbose=False)
    end = [tokenizer.eos_token_id]
    bare = [ids[:-1] if ids[-1:] == end else ids for ids in encoded["input_ids"]]
    rows = [[*ids, *(end if params.end_of_text else [])][: params.tokens] for ids in bare]
    marks = [{key: record[key] for key in record.keys() & {"related"}} for record in records]
    learned = [{"input_ids": ids, **mark} for ids, mark in zip(rows, marks, strict=True) if len(ids) > 1]
    if len(learned) < len(rows):  # a batch of only such texts would have no loss
        recorder.say(f"{len(rows) - len(learned):,} texts of one token are left out: nothing follows it to be learned")
    if not learned:
        raise UserError("no text of the wanted class has two tokens, so there is nothing to fine-tune on")
    return learned


def _in_float32(trainer: SFTTrainer) -> SFTTrainer:
    """Makes an adapter float32 again: trl rounds it to bfloat16 on a quantised model, and small steps would be lost."""
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return trainer
