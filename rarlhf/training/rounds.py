"""What regularised fine-tuning learns between its steps: in each round answers, their labels, and a head R.

A round begins with a frozen copy of the model as it is. The copy answers some training prompts; each answer is scored
and labelled as `rarlhf.training.head` says; and a new head learns R(prefix, token), the expected label of the copy's
answers that go on so. The threshold of hard labels is a quantile of the first round's scores, in score units, so that
what is wanted does not move with the model.

Letters for shapes: B rows, S tokens of a row, n positions with a penalty, H hidden size, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import GPT2LMHeadModel

from rarlhf.config.baselines import HeadParams, RegularisedParams
from rarlhf.config.counts import learning_rounds
from rarlhf.config.errors import UserError
from rarlhf.config.params import Params
from rarlhf.data.prompts import Query
from rarlhf.decoding.samples import Model, Sampler, Samples
from rarlhf.messages.progress import Recorder
from rarlhf.models.backbone import Trainable
from rarlhf.models.head import head_inputs, head_states
from rarlhf.models.policy import logits_of, sampling_of
from rarlhf.models.reference import RefPolicy
from rarlhf.rewards.scorers import Score
from rarlhf.system.machine import Machine
from rarlhf.system.streams import derived_seed, generator
from rarlhf.training.head import labels_of, learn_head, threshold_of
from rarlhf.training.supervised import Seat, apart


class Guide(NamedTuple):
    """A head and the frozen copy of the model whose states it reads."""

    policy: RefPolicy
    head: GPT2LMHeadModel
    round: int  # at whose beginning it was learnt, from 1

    @property
    def last(self) -> int:
        """The last column after which the head knows R; further ones are beyond its longest answer."""
        return int(self.head.config.n_positions) - 2

    @torch.no_grad()
    def read(self, tokens: Tensor, mask: Tensor, machine: Machine) -> tuple[Tensor, Tensor]:
        """(n, V) float32 logits of the copy and of R after each prefix that `mask` names, for every next token.

        Args:
            tokens: (B, S) rows, padded on the right.
            mask: (B, S - 1) bool, no column after `last`.
            machine: its precision.
        """
        rows, width = mask.any(dim=1), min(mask.shape[1], self.last + 1)
        with machine.autocast():
            with self.policy() as lm:  # padding on the right needs no mask: no real token attends to it
                states = lm.base_model(input_ids=tokens[rows, :width], use_cache=False).last_hidden_state
                inputs = head_inputs(lm, states, tokens[rows, :width])
                logits = logits_of(lm, states[mask[rows, :width]])
            return logits, logits_of(self.head, head_states(self.head, inputs)[mask[rows, :width]])


class Rounds:
    """The rounds of one training."""

    def __init__(  # noqa: PLR0913, PLR0917, each is a different thing
        self,
        settings: RegularisedParams,
        start: Trainable,
        queries: Sequence[Query],
        score: Score,
        params: Params,
        seat: Seat,
    ) -> None:
        """Raises: UserError if there are fewer prompts than asked for."""
        if settings.prompts > len(queries):
            raise UserError(
                f"tuning.regularised.prompts = {settings.prompts:,}: there are {len(queries):,} training prompts; "
                "lower it"
            )
        self.settings, self.start, self.queries, self.params = settings, start, queries, params
        self.machine, self.recorder, self.seed = seat
        self.head = HeadParams.model_validate(settings.head)
        self.sampling = sampling_of(params, start.tokenizer.eos_token_id)
        self.sampler = Sampler(score, params, seat.machine)
        self.threshold: float | None = None  # of hard labels, score units; known after the first answers
        self.learnt: dict[int, Guide] = {}
        self.step = 0

    def first_steps(self, steps: int) -> list[int]:
        """The step before which each round begins, counted from 0.

        Raises: UserError if there are fewer steps than rounds.
        """
        if steps < self.settings.rounds:
            raise UserError(
                f"tuning.regularised.rounds = {self.settings.rounds}: the training has {steps:,} optimiser steps; "
                "lower it, or raise sft.epochs"
            )
        return [number * steps // self.settings.rounds for number in range(self.settings.rounds)]

    def begin(self, number: int, step: int) -> Guide:
        """Learns what the round is to learn, and returns what it uses.

        Args:
            number: of the round, from 1.
            step: optimiser steps that are done.
        """
        self.step = step
        if number in learning_rounds(self.settings):
            with apart():
                self.learnt[number] = self.learn(number)
        used = max(1, number - self.settings.lag)
        self.learnt = {key: guide for key, guide in self.learnt.items() if key >= used}
        return self.learnt[used]

    def learn(self, number: int) -> Guide:
        """Draws answers of the model as it is, labels them, and trains a head on them."""
        names = ("regularised", self.seed, number)
        policy = self.start.snapshot(f"round_{number % (1 + self.settings.lag)}")
        order = torch.randperm(len(self.queries), generator=generator(*names, "prompts"))
        chosen = [self.queries[i] for i in order[: self.settings.prompts].sort().values.tolist()]
        model = Model(policy, self.start.tokenizer)
        drawn = self.sampler(f"sampling {number}", model, chosen, self.settings.samples, *names)
        labels = self.labels(drawn, number)
        seat = Seat(self.machine, _Spoken(self.recorder), derived_seed(*names))
        head, curve = learn_head(self.head, drawn, labels, policy, self.sampling, seat)
        values = {
            "score_mean": float(drawn.scores.double().mean()),
            "label_mean": float(labels.double().mean()),
            "head_loss": curve[-1]["loss"],
        }
        self.recorder.record(self.step, {f"regularised/{name}": value for name, value in values.items()})
        said = ", ".join(f"{name.replace('_', ' ')} {value:+.3f}" for name, value in values.items())
        self.recorder.say(f"round {number}: {said}")
        return Guide(policy, head.requires_grad_(False), number)

    def labels(self, drawn: Samples, number: int) -> Tensor:
        """(P, N) labels by the first round's threshold.

        Raises: UserError as `labels_of`.
        """
        if self.threshold is None and self.head.labels == "hard":
            self.threshold = threshold_of(drawn.scores, self.head)
        try:
            return labels_of(drawn.scores, self.head, self.threshold)
        except UserError as error:
            raise UserError(f"tuning.regularised, round {number}: {error}") from error


class _Spoken:
    """A recorder without the numbers of a head's own training, whose steps are not those of the model."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder

    def record(self, step: int, values: Mapping[str, float]) -> None:
        """Drops the numbers."""

    def say(self, text: str) -> None:
        """Hands on a line."""
        self.recorder.say(text)
