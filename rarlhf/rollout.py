"""Records of one PPO iteration, and how they are cut, joined and chosen from.

Letters for shapes: B episodes, B' kept episodes, T response tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rarlhf.advantages import whiten
from rarlhf.policy import Episodes, Measured
from rarlhf.queries import PlainPrompts, scored_text
from rarlhf.runtime import generator


@dataclass(frozen=True)
class Rollout:
    """One sampling pass. Everything is constant: no gradient flows into it and nothing edits it."""

    episodes: Episodes
    logprobs: Tensor  # (B, T) float32, log-probabilities at sampling time
    ref_logprobs: Tensor  # (B, T) float32, under the reference policy
    values: Tensor  # (B, T) float32, critic at sampling time, score units
    entropy: Tensor  # (B, T) float32, nats
    scores: Tensor  # (B,) float32, reward model's value of query and response
    weights: Sequence[Fraction] | None = None  # B numbers, p(x) / q(x) where hard prompts are drawn more; None: all 1

    @property
    def log_ratio(self) -> Tensor:
        """(B, T) log pi - log pi_ref in nats, zero on padding: the k1 estimator of the KL per token."""
        return torch.where(self.episodes.response_mask, self.logprobs - self.ref_logprobs, 0.0)


class Targets(NamedTuple):
    """What the PPO epochs train on: kept episodes only, B' rows."""

    episodes: Episodes
    logprobs: Tensor  # (B', T)
    values: Tensor  # (B', T)
    advantages: Tensor  # (B', T), whitened over the kept real tokens
    returns: Tensor  # (B', T), value targets

    def rows(self, index: Tensor) -> "Targets":
        """The targets at `index` (int64), in that order."""
        return Targets(self.episodes.rows(index), *(field[index] for field in self[1:]))


class UpdateStats(NamedTuple):
    """Means over the optimiser steps of one update, but for the largest ratio."""

    policy_loss: float
    value_loss: float
    clip_fraction: float  # share of kept tokens whose ratio left the clip range
    approx_kl: float  # mean of (ratio - 1) - log ratio over kept tokens, nats
    ratio_max: float
    skipped: float  # optimiser steps left out because their mean ratio was above max_ratio


def select(rollout: Rollout, advantages: Tensor, returns: Tensor, tail_mask: Tensor, centred: bool = True) -> Targets:
    """The kept episodes in batch order, their advantages whitened over their real tokens alone."""
    episodes = rollout.episodes.rows(tail_mask)
    whitened = whiten(advantages[tail_mask], episodes.response_mask, centred)
    return Targets(episodes, rollout.logprobs[tail_mask], rollout.values[tail_mask], whitened, returns[tail_mask])


def query_batch(
    queries: Sequence[list[int]], index: int, batch_size: int, seed: int, stream: str = "queries"
) -> list[list[int]]:
    """The `index`-th batch (from 0) of passes over shuffled queries, each pass's incomplete last batch left out.

    Args:
        queries: at least `batch_size` lists of token ids.
        index: of the batch.
        batch_size: queries in it.
        seed: the run's.
        stream: name of the random stream; another one shuffles otherwise.
    """
    per_pass = len(queries) // batch_size
    order = torch.randperm(len(queries), generator=generator(stream, seed, index // per_pass)).tolist()
    start = index % per_pass * batch_size
    return [queries[i] for i in order[start : start + batch_size]]


def chunks(rows: Tensor, size: int) -> tuple[Tensor, ...]:
    """`rows` (N,) in pieces of `size`, the last one possibly shorter; none where N is 0."""
    return rows.split(size) if len(rows) else ()


def real_tokens(tokens: list[int], mask: list[bool]) -> list[int]:
    """The tokens whose mask is True."""
    return [token for token, is_real in zip(tokens, mask, strict=True) if is_real]


def stacked(parts: list[Episodes], pad_id: int) -> Episodes:
    """Joins micro-batches whose longest responses differ."""
    return Episodes(
        torch.cat([part.queries for part in parts]),
        torch.cat([part.query_mask for part in parts]),
        _widened([part.responses for part in parts], pad_id),
        _widened([part.response_mask for part in parts], False),
    )


def gathered(parts: list[Rollout], pad_id: int) -> Rollout:
    """Joins the processes' shares of a rollout."""
    return Rollout(
        stacked([part.episodes for part in parts], pad_id),
        _widened([part.logprobs for part in parts], 0.0),
        _widened([part.ref_logprobs for part in parts], 0.0),
        _widened([part.values for part in parts], 0.0),
        _widened([part.entropy for part in parts], 0.0),
        torch.cat([part.scores for part in parts]),
    )


def joined(parts: list[Measured]) -> Measured:
    """Joins what was measured of micro-batches whose longest responses differ; padding is 0."""
    return Measured(*(_widened(list(fields), 0.0) for fields in zip(*parts, strict=True)))


def _widened(parts: list[Tensor], fill: float) -> Tensor:
    width = max(part.shape[1] for part in parts)
    return torch.cat([torch.nn.functional.pad(part, (0, width - part.shape[1]), value=fill) for part in parts])


def combined(steps: list[UpdateStats]) -> UpdateStats:
    """One update's numbers from those of its optimiser steps."""
    means = [sum(values) / len(steps) for values in zip(*steps, strict=True)]
    worst = max(step.ratio_max for step in steps)
    return UpdateStats(*means)._replace(ratio_max=worst, skipped=sum(step.skipped for step in steps))


def episode_texts(
    episodes: Episodes, tokenizer: PreTrainedTokenizerBase, plain_prompts: PlainPrompts | None
) -> list[str]:
    """What the score sees of each query with its response: without special tokens and without a template.

    Args:
        episodes: B episodes.
        tokenizer: of the model.
        plain_prompts: messages of the queries in a chat template; None where there is none.
    """
    rows = zip(*(field.tolist() for field in episodes), strict=True)
    pairs = [(real_tokens(query, q_mask), real_tokens(response, r_mask)) for query, q_mask, response, r_mask in rows]
    if plain_prompts is None:
        return list(tokenizer.batch_decode([query + response for query, response in pairs], skip_special_tokens=True))
    answers = tokenizer.batch_decode([response for _, response in pairs], skip_special_tokens=True)
    prompts = [plain_prompts[tuple(query)] for query, _ in pairs]
    return [scored_text(prompt, answer, chat=True) for prompt, answer in zip(prompts, answers, strict=True)]
