"""Trainings of `methods.tuned`: which one an entry names, and fine-tuning on other texts than those of SFT."""

from collections.abc import Sequence
from fractions import Fraction
from math import floor
from pathlib import Path
from typing import NamedTuple

import torch

from rarlhf.config.baselines import QuarkParams, RegularisedParams, SupervisedParams
from rarlhf.config.errors import UserError
from rarlhf.config.fields import Section
from rarlhf.config.params import Params, PromptParams
from rarlhf.data.prompts import sft_records, wanted_rows
from rarlhf.data.rows import Row, read_rows
from rarlhf.messages.progress import Recorder
from rarlhf.models.loading import load_tokenizer
from rarlhf.rewards.scorers import Score
from rarlhf.system.machine import Machine
from rarlhf.training import quark, regularised
from rarlhf.training.sft import train_sft
from rarlhf.training.supervised import LossCurve, Seat


class Places(NamedTuple):
    """What a training reads and writes."""

    base: Path  # the base model
    sft: Path  # the SFT model
    raw: Path  # rows of both splits
    prompts: Path  # queries
    out: Path  # where the model is written, as `from_pretrained` of transformers, or of peft for an adapter, loads it


def train_tuned(  # noqa: PLR0913, PLR0917, each is a different thing
    settings: Section, places: Places, score: Score, params: Params, machine: Machine, recorder: Recorder, seed: int
) -> LossCurve:
    """Trains a model by SFT on other texts, by Quark or with a penalty, and writes it; returns its curve.

    Args:
        settings: of a section of `tuning`, which decides between them.
        places: what is read and written.
        score: the reward model.
        params: all parameters.
        machine: device and precision.
        recorder: takes the loss.
        seed: of the order and of a new adapter's weights.
    Raises: UserError if there is nothing to train on.
    """
    if isinstance(settings, SupervisedParams):
        return _supervised(settings, places, score, params, machine, recorder, seed)
    if isinstance(settings, QuarkParams):
        own = quark.Places(places.sft, places.prompts, places.out)
        return quark.train_quark(settings, own, score, params, Seat(machine, recorder, seed))
    if isinstance(settings, RegularisedParams):
        read = regularised.Places(places.base, places.raw, places.prompts, places.out)
        return regularised.train_regularised(settings, read, score, params, Seat(machine, recorder, seed))
    raise ValueError(f"no training has settings of the kind {type(settings).__name__}")


def _supervised(  # noqa: PLR0913, PLR0917, as above
    settings: SupervisedParams,
    places: Places,
    score: Score,
    params: Params,
    machine: Machine,
    recorder: Recorder,
    seed: int,
) -> LossCurve:
    """SFT of the base model on the texts that `settings.texts` names, with the run's seed in its own."""
    if params.sft.epochs == 0:
        raise UserError("tuning.supervised: sft.epochs is 0, so nothing would be trained; raise it")
    rows = read_rows(places.raw / "train.jsonl")
    chosen = chosen_rows(rows, settings, score, params.prompts)
    recorder.say(f"{settings.texts}: {len(chosen):,} of {len(rows):,} training rows")
    tokenizer = load_tokenizer(str(places.base))
    records = [record for row in chosen for record in sft_records(row, tokenizer, params.prompts)]
    sft = params.sft.model_copy(update={"seed": params.sft.seed + seed})
    return train_sft(records, places.base, places.out, params.model, sft, machine, recorder)


def chosen_rows(rows: Sequence[Row], settings: SupervisedParams, score: Score, prompts: PromptParams) -> list[Row]:
    """The rows to learn, in their own order.

    Args:
        rows: training rows.
        settings: `above` and `below` are by the score of the whole text: of n rows the floor(quantile n) lowest are
            below. `wanted` and `unwanted` are by label, or without labels as `wanted_rows` divides them. `all` are all.
        score: the reward model.
        prompts: section `prompts`.
    Raises: UserError if there is none.
    """
    if settings.texts == "all":
        chosen = list(rows)
    elif settings.texts in {"wanted", "unwanted"}:
        wanted = wanted_rows(rows, score, prompts)
        taken = {id(row) for row in wanted}
        chosen = wanted if settings.texts == "wanted" else [row for row in rows if id(row) not in taken]
    else:
        count = floor(Fraction(str(settings.quantile)) * len(rows))
        order = torch.argsort(score([row.text for row in rows]), stable=True).tolist()
        chosen = [rows[i] for i in sorted(order[count:] if settings.texts == "above" else order[:count])]
    if not chosen:
        raise UserError(
            f"tuning.supervised.texts = {settings.texts!r}, quantile = {settings.quantile:g}: no training row is left"
        )
    return chosen
