"""Regularised fine-tuning: learn texts of a domain, and not their unwanted attribute.

The base model learns all training rows, the unwanted ones too, by the loss

    (1 / n) sum over the n tokens of a batch of [-log p(y_t | y_<t) + penalty m_t KL(q_t || p_t)],
    q_t(v) = p'(v | y_<t) R(y_<t, v) / sum_u p'(u | y_<t) R(y_<t, u),

where no gradient flows through q. R(prefix, token) is the expected label of whole answers that go on so, which a head
learns from the model's own answers (`rarlhf.training.rounds`). p' is the frozen copy of the model that gave these
answers (`target: copy`), or the model p as it is at each step (`current`). So q is the token-level form of the closest
distribution to p' that has the wanted attribute, and the gradient of a term with respect to the logits of p is p - q.

m_t is 1 where the head knows R: after prefixes of at least `prompts.tokens` tokens, as far as its longest answer. It is
0 elsewhere, and in rows that are not related (`related`), which makes the training adaptive.

Rounds divide the steps in equal parts, with one optimiser and one rate for all. At the beginning of round i a head R_i
is learnt from the model as it is. Round i uses R_i (`lag` 0, sequential), or R_(i-1) from the second round on (`lag` 1,
parallel): then R_i is not needed before the next round, and two devices could work at once. Here they take turns.

Source: "Attribute Controlled Fine-tuning for Large Language Models" (Meng et al. 2024, arXiv 2410.05559). There is no
public code; the direction of the KL and how q is held are choices (docs/regularised.md).

Letters for shapes: B rows, S tokens of a row, n positions with a penalty, H hidden size, V vocabulary.
"""

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.nn.functional import logsigmoid
from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import SFTConfig, SFTTrainer

from rarlhf.config.baselines import RegularisedParams
from rarlhf.config.errors import UserError
from rarlhf.config.params import Params, PromptParams
from rarlhf.data.prompts import Query, sft_records, wanted_rows
from rarlhf.data.queries import text_query
from rarlhf.data.rows import Row, read_rows
from rarlhf.decoding.compatible import refuse_incompatible
from rarlhf.models.backbone import Trainable
from rarlhf.models.loading import load_tokenizer
from rarlhf.models.policy import logits_of
from rarlhf.rewards.scorers import Score
from rarlhf.system.files import read_jsonl
from rarlhf.training.rounds import Guide, Rounds
from rarlhf.training.sft import plain_trainer, train_sft
from rarlhf.training.supervised import LossCurve, Seat


class Places(NamedTuple):
    """What a training reads and writes."""

    base: Path  # the base model, from which it starts
    raw: Path  # rows of both splits
    prompts: Path  # queries
    out: Path  # where the model is written


def constrained(logprobs: Tensor, worth: Tensor) -> Tensor:
    """(n, V) log q, with q proportional to p R.

    Args:
        logprobs: (n, V) log p of the next token.
        worth: (n, V) logits of R.
    """
    return (logprobs + logsigmoid(worth)).log_softmax(dim=-1)


def divergence(logits: Tensor, worth: Tensor, held: Tensor | None = None) -> Tensor:
    """(n,) KL(q || p) in nats; its gradient with respect to the logits of p is p - q.

    Args:
        logits: (n, V) of the next token.
        worth: (n, V) logits of R.
        held: (n, V) logits of the distribution in q; None: those of p.
    """
    logprobs = logits.log_softmax(dim=-1)
    target = constrained((logprobs if held is None else held.log_softmax(dim=-1)).detach(), worth)
    return (target.exp() * (target - logprobs)).sum(dim=-1)


def known_columns(mask: Tensor, related: Tensor, first: int, last: int) -> Tensor:
    """(B, S - 1) bool: after which columns of a row the next token has a penalty.

    Args:
        mask: (B, S) 1 on tokens of a row, which come first.
        related: (B,) bool.
        first: the first column, of a prefix of first + 1 tokens.
        last: the last one.
    """
    columns = torch.arange(mask.shape[1] - 1, device=mask.device)
    return (columns >= first) & (columns <= last) & mask[:, 1:].bool() & related.unsqueeze(1)


def related_rows(
    rows: Sequence[Row],
    settings: RegularisedParams,
    score: Score,
    tokenizer: PreTrainedTokenizerBase,
    prompts: PromptParams,
) -> list[bool]:
    """Which rows have a penalty.

    Args:
        rows: training rows.
        settings: `label` takes rows of the unwanted class; `prompt` takes those whose prompt, the first
            `prompts.tokens` tokens, scores no more than the quantile of the scores of all rows' prompts.
        score: the reward model.
        tokenizer: the base model's.
        prompts: section `prompts`.
    Raises: UserError if the rows have labels and none is unwanted, or `label` finds no row.
    """
    wanted = {id(row) for row in wanted_rows(rows, score, prompts)} if settings.related == "label" else set()
    labels = {row.label for row in rows}
    if labels == {1} or len(wanted) == len(rows):
        raise UserError(
            f"tuning.regularised: none of {len(rows):,} training rows is of the unwanted class, so there is nothing to "
            "keep out; give rows of both classes, or take by: supervised"
        )
    if settings.related == "all":
        return [True] * len(rows)
    if settings.related == "label":
        return [id(row) not in wanted for row in rows]
    scores = score([text_query(row.prompt or row.text, tokenizer, prompts).prompt for row in rows])
    count = ceil(Fraction(str(settings.related_quantile)) * len(rows))
    return (scores <= scores.sort().values[count - 1]).tolist()


def train_regularised(
    settings: RegularisedParams, places: Places, score: Score, params: Params, seat: Seat
) -> LossCurve:
    """Trains the base model and writes it; returns its curve (step, loss with its penalty, lr).

    Without a penalty it is `by: supervised` with `texts: all`, byte for byte.

    Args:
        settings: section `tuning.regularised` with the whole of its head.
        places: what is read and written.
        score: the reward model.
        params: all parameters; section `sft` sets the steps.
        seat: machine, recorder and seed.
    Raises: UserError if there is nothing to train on or to keep out, or the model cannot be trained so.
    """
    machine, recorder, seed = seat
    if params.sft.epochs == 0:
        raise UserError("tuning.regularised: sft.epochs is 0, so nothing would be trained; raise it")
    rows = read_rows(places.raw / "train.jsonl")
    tokenizer = load_tokenizer(str(places.base))
    related = related_rows(rows, settings, score, tokenizer, params.prompts)
    recorder.say(f"{sum(related):,} of {len(rows):,} training rows have a penalty")
    records = [
        {**record, "related": mark} if settings.penalty else record
        for row, mark in zip(rows, related, strict=True)
        for record in sft_records(row, tokenizer, params.prompts)
    ]
    queries = cast("list[Query]", read_jsonl(places.prompts / "train.jsonl"))

    def make(start: Trainable, config: SFTConfig, dataset: Dataset) -> SFTTrainer:
        refuse_incompatible(start.lm, start.tokenizer)
        rounds = Rounds(settings, start, queries, score, params, seat)
        return RegularisedTrainer(start, config, dataset, rounds)

    sft = params.sft.model_copy(update={"seed": params.sft.seed + seed})
    trainer = make if settings.penalty else plain_trainer
    return train_sft(records, places.base, places.out, params.model, sft, machine, recorder, trainer)


class RegularisedTrainer(SFTTrainer):
    """trl's SFTTrainer with the penalty of the rounds."""

    def __init__(self, start: Trainable, config: SFTConfig, rows: Dataset, rounds: Rounds) -> None:
        super().__init__(start.model, config, train_dataset=rows, processing_class=start.tokenizer)
        self.data_collator: Any = partial(_collated, self.data_collator)
        self.lm, self.rounds = start.lm, rounds
        self.guide: Guide | None = None
        self.kl, self.positions = 0.0, 0  # sum of the KL since the last logged step, and its terms
        self.add_callback(_Beginnings(self))

    def begin(self, number: int) -> None:
        """Begins a round, from 1."""
        self.guide = self.rounds.begin(number, self.state.global_step)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """The loss of next-token prediction plus the penalty, both divided by the tokens of the whole batch."""
        related, kept = inputs.pop("related"), []
        backbone = self.lm.base_model

        def keep(_module: nn.Module, _given: object, output: Any) -> None:
            kept.append(output.last_hidden_state)

        handle = backbone.register_forward_hook(keep)
        try:
            loss = super().compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)
        finally:
            handle.remove()
        tokens = inputs["labels"][:, 1:].ne(-100).sum() if num_items_in_batch is None else num_items_in_batch
        return loss + self.penalty(kept[0], inputs["input_ids"], inputs["attention_mask"], related) / tokens

    def penalty(self, states: Tensor, tokens: Tensor, mask: Tensor, related: Tensor) -> Tensor:
        """Sum over the positions of a batch of the weighted KL(q || p); scalar, nats.

        Args:
            states: (B, S, H) of the model that is trained.
            tokens: (B, S) rows, padded on the right.
            mask: (B, S) 1 on tokens of a row.
            related: (B,) bool.
        """
        guide, rounds = self.guide, self.rounds
        if guide is None:
            raise ValueError("no round has begun")
        known = known_columns(mask, related, rounds.params.prompts.tokens - 1, guide.last)
        if not known.any():
            return states.new_zeros(())
        copied, worth = guide.read(tokens, known, rounds.machine)
        with rounds.machine.autocast():
            logits = logits_of(self.lm, states[:, :-1][known])
        # as answers are drawn, but for an end that is not allowed yet: the rows may end anywhere
        own, held = (rounds.sampling.shape(some, first=rounds.sampling.min_new_tokens) for some in (logits, copied))
        kl = divergence(own, worth, held if rounds.settings.target == "copy" else None).sum()
        self.kl, self.positions = self.kl + float(kl.detach()), self.positions + len(worth)
        return rounds.settings.penalty * kl

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Records the mean KL of the penalty besides what the trainer logs."""
        if "loss" in logs and self.positions:
            self.rounds.recorder.record(self.state.global_step, {"train/constraint_kl": self.kl / self.positions})
            self.kl, self.positions = 0.0, 0
        super().log(logs, start_time)

    def _set_signature_columns_if_needed(self) -> None:
        """Keeps the column `related`."""
        super()._set_signature_columns_if_needed()
        columns: list[str] = self._signature_columns
        if "related" not in columns:
            columns.append("related")


class _Beginnings(TrainerCallback):
    """Begins each round before its first step."""

    def __init__(self, trainer: RegularisedTrainer) -> None:
        self.trainer = trainer
        self.first: list[int] = []

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Divides the steps."""
        self.first = self.trainer.rounds.first_steps(state.max_steps)

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Begins a round where one is due."""
        if state.global_step in self.first:
            self.trainer.begin(1 + self.first.index(state.global_step))


def _collated(
    collate: Callable[[list[dict[str, Any]]], dict[str, Any]], rows: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """A batch of the trainer's own, with the mark (B,) of each row."""
    batch = collate([{key: value for key, value in row.items() if key != "related"} for row in rows])
    return {**batch, "related": torch.tensor([bool(row["related"]) for row in rows])}
