"""Quark: likelihood of answers given the quantile of their score (Lu et al. 2022, arXiv 2205.13636).

K tokens are added to the vocabulary, one for each quantile of the score. Each round

1. draws an answer to each of some training prompts, behind the token of the best quantile (in the first round from the
   SFT model, without a token), scores them and adds them to a pool;
2. sorts the whole pool by score and cuts it into K equal parts;
3. takes optimiser steps on answers of the pool, each behind the token k of its part. The loss of a response token is

       -log p(y | k, x) + kl_coef KL(p(. | k, x) || p_ref(. | x)) - entropy_coef H(p(. | k, x)),

   and that of a batch is the mean over its response tokens. The reference is the SFT model, which sees no token k.

The K tokens have probability 0 in every distribution. Dropout is off, as in PPO and fits. Adam has an epsilon of 1e-5
and no clipping, as in the authors' code; its rate rises and then falls to 0 over the steps of all rounds.

Letters for shapes: P prompts, N answers in the pool, B of a batch, Q query and T response tokens, V vocabulary.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple, cast

import torch
from torch import Tensor
from transformers import get_linear_schedule_with_warmup

from rarlhf.config.baselines import QuarkParams
from rarlhf.config.errors import UserError
from rarlhf.config.params import Params
from rarlhf.data.prompts import Query
from rarlhf.decoding.compatible import refuse_incompatible
from rarlhf.decoding.conditioned import Conditioned
from rarlhf.decoding.prompts import left_pad
from rarlhf.decoding.samples import Model, Sampler, Samples
from rarlhf.messages.progress import progress
from rarlhf.models.backbone import Trainable, load_trainable
from rarlhf.models.context import positions_of
from rarlhf.models.episodes import Episodes, chunks, widened
from rarlhf.models.fused import fuse_activations
from rarlhf.models.policy import Sampling, logits_of, response_states, sampling_of
from rarlhf.models.recompute import recompute_blocks
from rarlhf.models.way import Way, without, write_way
from rarlhf.rewards.scorers import Score
from rarlhf.system.files import read_jsonl
from rarlhf.system.streams import generator
from rarlhf.training.supervised import CURVE_POINTS, LossCurve, Seat

TOKEN = "<|quark_{}|>"  # of a quantile, from 1, the lowest scores, to K
EPSILON = 1e-5  # Adam's, as in the authors' code


class Places(NamedTuple):
    """What a training reads and writes."""

    sft: Path  # folder of the SFT model: the start and the reference policy
    prompts: Path  # queries
    out: Path  # where the model is written, as `from_pretrained` of transformers loads it


class Terms(NamedTuple):
    """The parts of the loss of each response token, (B, T) float32 in nats; padding is not zeroed."""

    nll: Tensor  # negative log-likelihood of the token
    kl: Tensor  # KL of the policy's distribution to the reference's
    entropy: Tensor  # of the policy's distribution


def loss_terms(logits: Tensor, reference: Tensor, responses: Tensor, sampling: Sampling, never: Sequence[int]) -> Terms:
    """The parts of the loss, with gradients into `logits`.

    Args:
        logits: (B, T, V + K) or (B, T, V) of the policy behind the tokens of the quantiles.
        reference: (B, T, V) of the reference; the columns that it lacks are among `never`.
        responses: (B, T).
        sampling: what shapes both distributions.
        never: tokens that the policy cannot draw.
    """
    logprobs = sampling.shape(without(logits, never), first=0).log_softmax(dim=-1)
    probabilities, impossible = logprobs.exp(), logprobs == -torch.inf
    finite = logprobs.masked_fill(impossible, 0.0)  # times a probability of 0
    size = reference.shape[-1]
    shaped = sampling.shape(reference, first=0).log_softmax(dim=-1).masked_fill(impossible[..., :size], 0.0)
    return Terms(
        -logprobs.gather(-1, responses.unsqueeze(-1)).squeeze(-1),
        (probabilities[..., :size] * (finite[..., :size] - shaped)).sum(dim=-1),
        -(probabilities * finite).sum(dim=-1),
    )


def quantiles_of(scores: Tensor, count: int) -> Tensor:
    """(N,) int64 the quantile of each score, 0 to count - 1 from the lowest scores to the highest.

    Sizes differ by one at most. Of equal scores the one that came first is the lower one.
    """
    ranks = torch.empty(len(scores), dtype=torch.int64)
    ranks[torch.argsort(scores, stable=True)] = torch.arange(len(scores))
    return ranks * count // len(scores)


class Pool:
    """All answers so far, each with its query, its score and its quantile."""

    def __init__(self, tokens: Sequence[int], end_id: int) -> None:
        """Takes the tokens of the quantiles, from the lowest, and what pads responses."""
        self.tokens, self.end_id = tokens, end_id
        self.queries: list[list[int]] = []
        self.responses = torch.empty(0, 1, dtype=torch.int32)  # (N, T)
        self.lengths = torch.empty(0, dtype=torch.int32)  # (N,)
        self.scores = torch.empty(0)  # (N,)
        self.quantiles = torch.empty(0, dtype=torch.int64)  # (N,)

    def __len__(self) -> int:
        """Answers."""
        return len(self.queries)

    def add(self, drawn: Samples) -> None:
        """Adds answers, one or more to a prompt, and divides the pool anew."""
        each = drawn.scores.shape[1]
        self.queries += [row["input_ids"] for row in drawn.prompts for _ in range(each)]
        self.responses = widened([self.responses, drawn.responses.flatten(0, 1)], self.end_id)
        self.lengths = torch.cat([self.lengths, drawn.lengths.flatten()])
        self.scores = torch.cat([self.scores, drawn.scores.flatten()])
        self.quantiles = quantiles_of(self.scores, len(self.tokens))

    def batch(self, index: Tensor, device: torch.device) -> tuple[Episodes, Episodes]:
        """The answers at `index` behind the tokens of their quantiles, and without them."""
        rows = [self.queries[i] for i in index.tolist()]
        lengths = self.lengths[index].long()
        responses = self.responses[index, : int(lengths.max())].long().to(device)
        mask = (torch.arange(responses.shape[1]) < lengths.unsqueeze(1)).to(device)
        tokens = [self.tokens[k] for k in self.quantiles[index].tolist()]
        behind = [[token, *row] for token, row in zip(tokens, rows, strict=True)]
        conditioned, plain = (left_pad(queries, self.end_id, device) for queries in (behind, rows))
        return Episodes(*conditioned, responses, mask), Episodes(*plain, responses, mask)

    def order(self, count: int, random: torch.Generator) -> Tensor:
        """(count,) indices of answers: passes through the whole pool, each in an order of its own."""
        passes = [torch.randperm(len(self), generator=random) for _ in range(-(-count // len(self)))]
        return torch.cat(passes)[:count]


def add_tokens(start: Trainable, count: int, seed: int) -> list[int]:
    """Adds `count` tokens to a model and its tokenizer, in place; returns their ids.

    Each number of their embeddings is drawn from a normal distribution with mean and standard deviation of its column
    in the table.

    Raises: UserError if the tokenizer has one of them.
    """
    names = [TOKEN.format(k + 1) for k in range(count)]
    taken = sorted(set(names) & set(start.tokenizer.get_vocab()))
    if taken:
        raise UserError(f"the tokenizer has the token {taken[0]} already: Quark needs a start that is not its own")
    start.tokenizer.add_special_tokens({"additional_special_tokens": names})
    ids = [int(i) for i in start.tokenizer.convert_tokens_to_ids(names)]
    table = start.lm.get_input_embeddings().weight.detach().float()
    random = torch.randn(count, table.shape[1], generator=generator("quark", "tokens", seed))
    deviation, mean = torch.std_mean(table, dim=0, correction=0)
    start.add_tokens(ids, mean + deviation * random.to(mean.device))
    return ids


def train_quark(settings: QuarkParams, places: Places, score: Score, params: Params, seat: Seat) -> LossCurve:
    """Trains the SFT model by Quark and writes it; returns its curve.

    Args:
        settings: section `tuning.quark`.
        places: what is read and written.
        score: the reward model.
        params: all parameters.
        seat: machine, recorder and seed.
    Returns: step, loss and its parts (nats per token), lr and round; a row holds the means of some steps.
    Raises: UserError if there are fewer prompts than asked for, or the model cannot be trained so.
    """
    queries = cast("list[Query]", read_jsonl(places.prompts / "train.jsonl"))
    start = load_trainable(places.sft, params.model, seat.seed, seat.machine.device)
    refuse_incompatible(start.lm, start.tokenizer)
    training = Quark(settings, start, queries, score, params, seat)
    curve = training.rounds()
    training.save(places.out)
    return curve


class Quark:
    """One training."""

    def __init__(  # noqa: PLR0913, PLR0917, each is a different thing
        self,
        settings: QuarkParams,
        start: Trainable,
        queries: Sequence[Query],
        score: Score,
        params: Params,
        seat: Seat,
    ) -> None:
        """Raises: UserError as `train_quark`."""
        _refuse_unfit(settings, start, queries, params)
        self.settings, self.start, self.queries, self.params = settings, start, queries, params
        self.machine, self.recorder, self.seed = seat
        self.sampling = sampling_of(params, start.tokenizer.eos_token_id)
        self.ref_policy = start.ref_policy()
        self.tokens = add_tokens(start, settings.quantiles, self.seed)
        self.way = Way([self.tokens[-1]], self.tokens)
        fuse_activations(start.lm)
        if params.model.gradient_checkpointing:
            recompute_blocks(start.lm)
        self.sampler = Sampler(score, params, self.machine)
        self.pool = Pool(self.tokens, self.sampling.end_id)
        steps = settings.rounds * settings.steps
        trained = [weight for weight in start.lm.parameters() if weight.requires_grad]
        self.adam = torch.optim.Adam(trained, lr=settings.lr, eps=EPSILON)
        self.schedule = get_linear_schedule_with_warmup(self.adam, round(settings.warmup * steps), steps)
        self.curve = _Curve(max(1, steps // CURVE_POINTS), seat)

    def rounds(self) -> LossCurve:
        """Draws and trains in turn."""
        for number in range(1, self.settings.rounds + 1):
            self.draw(number)
            self.fit(number)
        return self.curve.rows

    def draw(self, number: int) -> None:
        """Adds a round's answers to the pool."""
        prompts, names = self.settings.prompts, ("quark", self.seed, number)
        chosen = torch.randperm(len(self.queries), generator=generator(*names, "prompts"))[:prompts].sort().values
        if number == 1:
            model = Model(self.ref_policy, self.start.tokenizer)
        else:
            model = Model(
                lambda: nullcontext(self.start.lm), self.start.tokenizer, self.ref_policy, Conditioned(self.way)
            )
        drawn = self.sampler(f"sampling {number}", model, [self.queries[i] for i in chosen.tolist()], 1, *names)
        self.pool.add(drawn)
        kl = 0.0 if drawn.log_ratios is None else float(drawn.log_ratios.double().mean())
        mean = float(drawn.scores.double().mean())
        values = {"kl": kl, "score_mean": mean, "scored": float(len(self.pool))}
        self.recorder.record(self.curve.step, {f"quark/{name}": value for name, value in values.items()})
        self.recorder.say(f"round {number}: mean score {mean:+.3f}, {kl:.2f} nats from SFT, {len(self.pool):,} answers")

    def fit(self, number: int) -> None:
        """Takes a round's optimiser steps."""
        steps, size = self.settings.steps, self.settings.batch_size
        order = self.pool.order(steps * size, generator("quark", self.seed, number, "order"))
        with progress(f"round {number}", steps) as show:
            for done, index in enumerate(chunks(order, size), start=1):
                lr = self.schedule.get_last_lr()[0]
                parts = self.step(index)
                self.curve.add(parts | {"lr": lr, "round": number})
                show(done, f"loss {parts['loss']:.3f}")

    def step(self, index: Tensor) -> dict[str, float]:
        """One optimiser step on the answers at `index`; returns the loss and its parts, nats per token.

        Raises: UserError if the loss is not a finite number.
        """
        tokens, sums = int(self.pool.lengths[index].sum()), torch.zeros(3, dtype=torch.float64)
        for rows in chunks(index, self.settings.micro_batch_size):
            sums += self.backward(rows, tokens)
        nll, kl, entropy = (sums / tokens).tolist()
        loss = nll + self.settings.kl_coef * kl - self.settings.entropy_coef * entropy
        if not torch.tensor(loss).isfinite():
            raise UserError(f"the loss of step {self.curve.step + 1} is not a finite number; lower tuning.quark.lr")
        self.adam.step()
        self.schedule.step()
        self.adam.zero_grad(set_to_none=True)
        return {"loss": loss, "nll": nll, "kl": kl, "entropy": entropy}

    def backward(self, rows: Tensor, tokens: int) -> Tensor:
        """Adds the gradient of a micro-batch; returns the sums (3,) of its `Terms`.

        Args:
            rows: indices of answers.
            tokens: response tokens of the whole batch.
        """
        conditioned, plain = self.pool.batch(rows, self.machine.device)
        with self.machine.autocast():
            with torch.no_grad(), self.ref_policy() as lm:
                reference = logits_of(lm, response_states(lm, plain))
            logits = logits_of(self.start.lm, response_states(self.start.lm, conditioned))
            terms = loss_terms(logits, reference, conditioned.responses, self.sampling, self.way.never)
        nll, kl, entropy = (torch.where(conditioned.response_mask, term, 0.0).sum() for term in terms)
        loss = nll + self.settings.kl_coef * kl - self.settings.entropy_coef * entropy
        (loss / tokens).backward()
        return torch.stack([nll, kl, entropy]).detach().double().cpu()

    def save(self, folder: Path) -> None:
        """Writes the model, its tokenizer and how it is decoded."""
        self.start.save(folder)
        write_way(self.way, self.start.lm, folder)


class _Curve:
    """Collects means of a few steps each, and records them."""

    def __init__(self, every: int, seat: Seat) -> None:
        self.every, self.recorder = every, seat.recorder
        self.step = 0
        self.rows: LossCurve = []
        self.seen: list[dict[str, float]] = []

    def add(self, values: dict[str, float]) -> None:
        """Takes a step's numbers."""
        self.step += 1
        self.seen.append(values)
        if self.step % self.every == 0:
            means = {
                key: sum(row[key] for row in self.seen) / len(self.seen) for key in ("loss", "nll", "kl", "entropy")
            }
            self.rows.append({"step": self.step, **means, "lr": values["lr"], "round": values["round"]})
            self.recorder.record(self.step, {f"train/{key}": means[key] for key in means} | {"train/lr": values["lr"]})
            self.seen = []


def _refuse_unfit(settings: QuarkParams, start: Trainable, queries: Sequence[Query], params: Params) -> None:
    """Raises: UserError if there are too few prompts, or no room for a token before the longest one."""
    if settings.prompts > len(queries):
        raise UserError(
            f"tuning.quark.prompts = {settings.prompts:,}: there are {len(queries):,} training prompts; lower it"
        )
    context = positions_of(start.lm.config)
    longest = 1 + max(len(row["input_ids"]) for row in queries) + params.ppo.max_new_tokens
    if context is not None and longest > context:
        raise UserError(
            f"Quark's token, query and response take {longest} tokens and the model reads {context}; lower "
            "prompts.tokens or ppo.max_new_tokens"
        )
