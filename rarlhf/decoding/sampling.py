"""Drawing responses: the one way in which rollouts, stage `generate` and the command line continue prompts.

Each token is drawn by inverting the distribution at one uniform number that belongs to its episode and column. The
draws therefore do not depend on how episodes are batched, and a run that resumes draws what it would have drawn.

Letters for shapes: n draws, B prompts, Q query tokens, T response tokens, H hidden size, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import LogitsProcessorList, PreTrainedModel

from rarlhf.config.errors import UserError
from rarlhf.data.acceptance import nats_of_draws
from rarlhf.decoding.compiled import CompiledSteps
from rarlhf.decoding.eager import EagerDecoder
from rarlhf.decoding.prompts import Prompts
from rarlhf.decoding.rules import DecodingRule
from rarlhf.models.episodes import Episodes, Measured, chunks, joined, stacked
from rarlhf.models.policy import Policy, Sampling, logits_of
from rarlhf.system.streams import generator

STOP_EVERY = 8  # tokens between two looks at whether all responses have ended: each waits for an accelerator

# Is shown each column: hidden states (B, 1, H), logits and the probabilities they were shaped to (B, V), tokens (B,).
Observer = Callable[[Tensor, Tensor, Tensor, Tensor], None]


@dataclass(frozen=True)
class Decoding:
    """How prompts are continued."""

    lm: PreTrainedModel  # in eval mode
    sampling: Sampling  # temperature, lengths and end of text
    rule: DecodingRule | None = None  # None: plain sampling from `lm`
    compiled: CompiledSteps | None = None  # the compiled passes of `lm`; None: eager ones


class Responses(NamedTuple):
    """What was drawn."""

    episodes: Episodes
    logprobs: Tensor  # (B, T) float32, under the distributions that the tokens were drawn from
    choice_nats: Tensor  # (B,) float32, whose mean is at least what the choice of a draw adds to the KL
    draws: Tensor  # (B,) int64, responses that were drawn to each prompt


class Numbers(NamedTuple):
    """The random numbers of a batch, in [0, 1)."""

    tokens: Tensor  # (n, B, T) float32: one for each token of each draw
    coins: Tensor  # (n, B) float32: one for each draw, by which a rule accepts it

    def rows(self, index: Tensor) -> "Numbers":
        """Those of the prompts at `index`."""
        return Numbers(self.tokens[:, index], self.coins[:, index])

    def to(self, device: torch.device) -> "Numbers":
        """The same on a device."""
        return Numbers(self.tokens.to(device), self.coins.to(device))


def uniform_numbers(names: Sequence[object], shape: Sequence[int], draws: int = 1) -> Tensor:
    """(n, *shape) float32 in [0, 1) on the CPU: the first draw from the stream `names`, each further one from its own.

    So a rule of n draws finds the response of plain sampling among its draws, and those of a rule of fewer draws.
    """
    streams = [generator(*names, *([draw] if draw else [])) for draw in range(draws)]
    return torch.stack([torch.rand(tuple(shape), generator=stream) for stream in streams])


def random_numbers(names: Sequence[object], shape: Sequence[int], draws: int = 1) -> Numbers:
    """The numbers of `draws` draws, for (B, T) tokens or for the (T,) tokens of one prompt."""
    return Numbers(uniform_numbers(names, shape, draws), uniform_numbers((*names, "coin"), shape[:-1], draws))


def draw(decoding: Decoding, prompts: Prompts, numbers: Numbers) -> Responses:
    """One response to each prompt, as the rule draws and chooses it.

    Args:
        decoding: model and rule.
        prompts: B queries.
        numbers: of as many draws as the rule makes at most; one without a rule.
    Raises: UserError as `sample_responses`.
    """
    rule, count = decoding.rule or DecodingRule(), len(prompts.tokens)
    if rule.draws == 1:
        episodes, logprobs = sample_with_logprobs(decoding, prompts, numbers.tokens[0])
        return Responses(episodes, logprobs, torch.zeros(count), torch.ones(count, dtype=torch.int64))
    return _Choice(decoding, prompts).made(numbers)


class _Choice:
    """Draws to each prompt until the rule accepts a response, and keeps that one or, at the end, the best."""

    def __init__(self, decoding: Decoding, prompts: Prompts) -> None:
        count, sampling = len(prompts.tokens), decoding.sampling
        self.decoding, self.prompts = decoding, prompts
        self.responses = torch.full((count, sampling.max_new_tokens), sampling.end_id, device=prompts.tokens.device)
        self.mask = torch.zeros_like(self.responses, dtype=torch.bool)
        self.logprobs = torch.zeros(self.responses.shape, device=self.responses.device)
        self.values, self.acceptance = torch.full((count,), -torch.inf), torch.zeros(count)
        self.draws = torch.zeros(count, dtype=torch.int64)
        self.accepted = torch.zeros(count, dtype=torch.bool)

    def made(self, numbers: Numbers) -> Responses:
        """The kept responses."""
        rule = self.decoding.rule or DecodingRule()
        for uniforms, coins in zip(*numbers, strict=True):
            rows = (~self.accepted).nonzero().squeeze(1)
            if not len(rows):
                break
            episodes, logprobs = sample_with_logprobs(self.decoding, self.prompts.rows(rows), uniforms[rows])
            values = rule.value(episodes).float().cpu()
            acceptance = rule.log_acceptance(values)
            accepted = coins[rows].cpu() < acceptance.exp()
            self.draws[rows] += 1
            # The first response is kept until a better one comes, whatever its value: not a number compares as false.
            better = accepted | (values > self.values[rows]) | (self.draws[rows] == 1)
            self._keep(rows[better], (episodes.rows(better), logprobs[better]), values[better])
            self.accepted[rows[accepted]] = True
            self.acceptance[rows[accepted]] = acceptance[accepted]
        width = int(self.mask.sum(dim=1).max())
        episodes = Episodes(*self.prompts, self.responses[:, :width], self.mask[:, :width])
        chances = self.acceptance.double().exp().numpy() if rule.by_chance else None
        nats = nats_of_draws(self.draws.tolist(), self.accepted.tolist(), rule.draws, chances)
        return Responses(episodes, self.logprobs[:, :width], torch.from_numpy(nats).float(), self.draws)

    def _keep(self, rows: Tensor, drawn: tuple[Episodes, Tensor], values: Tensor) -> None:
        episodes, logprobs = drawn
        width = episodes.responses.shape[1]
        self.responses[rows] = self.decoding.sampling.end_id
        self.mask[rows], self.logprobs[rows] = False, 0.0
        self.responses[rows, :width] = episodes.responses
        self.mask[rows, :width], self.logprobs[rows, :width] = episodes.response_mask, logprobs
        self.values[rows] = values


def sample_with_logprobs(decoding: Decoding, prompts: Prompts, uniforms: Tensor) -> tuple[Episodes, Tensor]:
    """One draw, and the log-probabilities (B, T) of its tokens under the distributions they were drawn from."""
    columns: list[Tensor] = []

    def observe(_states: Tensor, _logits: Tensor, probabilities: Tensor, tokens: Tensor) -> None:
        columns.append(probabilities.gather(1, tokens.unsqueeze(1)).log())

    episodes = sample_responses(decoding, prompts, uniforms, observe)
    return episodes, torch.cat(columns, dim=1)[:, : episodes.responses.shape[1]]


@torch.no_grad()
def sample_responses(
    decoding: Decoding, prompts: Prompts, uniforms: Tensor, observe: Observer | None = None
) -> Episodes:
    """Draws one response to each prompt, once.

    Args:
        decoding: model and rule, whose choice among draws is not asked.
        prompts: B queries.
        uniforms: (B, T) float32 in [0, 1), one for each token that may be drawn.
        observe: is shown each column as it is drawn; on an accelerator also a few after the end of all responses.
    Returns: the episodes; responses are as wide as the longest of them and hold the end id after their end.
    Raises: UserError if the model gives no distribution to draw from.
    """
    sampling, new_tokens = decoding.sampling, decoding.sampling.max_new_tokens
    asked = decoding.rule.asked(prompts) if decoding.rule else prompts
    decoder, processors = _begin(decoding, asked)
    running = torch.ones(len(prompts.tokens), dtype=torch.bool, device=prompts.tokens.device)
    tokens, seen, drawn, real = asked.tokens, [asked.tokens], [], []
    every = 1 if tokens.device.type == "cpu" else STOP_EVERY
    for t in range(new_tokens):
        states = decoder(tokens)
        logits = logits_of(decoding.lm, states)
        if processors:
            # An end of text that may not be drawn is out before the rule: a nucleus of it alone would leave no token.
            allowed = sampling._replace(temperature=1.0).shape(logits, first=t)
            logits = processors(torch.cat(seen, dim=1), allowed[:, 0]).unsqueeze(1)
        probabilities = sampling.shape(logits, first=t)[:, 0].softmax(dim=-1)
        token = torch.where(running, invert(probabilities, uniforms[:, t]), sampling.end_id)
        vocab_size = logits.shape[-1]
        tokens = token.unsqueeze(1).clamp(max=vocab_size - 1)
        if observe is not None:
            observe(states, logits[:, 0], probabilities, tokens[:, 0])
        seen.append(tokens)
        drawn.append(token)
        real.append(running)
        running = running & (token != sampling.end_id)
        if (t + 1) % every == 0 and not running.any():
            break
    mask = torch.stack(real, dim=1)
    width = len(real) if every == 1 else int(mask.any(dim=0).sum())
    responses = torch.stack(drawn, dim=1)[:, :width]
    if (responses >= vocab_size).any():  # asked once, not at every token: each time waits for the device
        raise UserError(
            "the model's logits are not finite, so nothing can be drawn from them: its weights are too large"
        )
    return Episodes(*prompts, responses, mask[:, :width])


def _begin(decoding: Decoding, prompts: Prompts) -> tuple[Callable[[Tensor], Tensor], LogitsProcessorList]:
    """The model's passes with an empty cache, and the rule's processors."""
    new_tokens, compiled = decoding.sampling.max_new_tokens, decoding.compiled
    if compiled:
        decoder: Callable[[Tensor], Tensor] = compiled.decoder(prompts.mask, new_tokens)
    else:
        decoder = EagerDecoder(decoding.lm, prompts.mask, new_tokens)
    return decoder, decoding.rule.processors(prompts, new_tokens) if decoding.rule else LogitsProcessorList()


def sample_batches(
    decoding: Decoding, prompts: Prompts, uniforms: Tensor, size: int, measuring: Policy | None
) -> tuple[Episodes, Measured | None]:
    """Draws `size` responses at a time, for a rollout.

    Args:
        decoding: the policy's language model, without a rule: PPO's ratios are of the policy's own distribution.
        prompts: B queries.
        uniforms: (B, T) as in `sample_responses`.
        size: prompts continued at once.
        measuring: keeps what `Policy.measure` of this policy would compute of the episodes; None: nothing is kept.
    """
    parts, measured = [], []
    for rows in chunks(torch.arange(len(uniforms)), size):
        columns = Columns(measuring) if measuring else None
        parts.append(sample_responses(decoding, prompts.rows(rows), uniforms[rows], columns))
        measured += [] if columns is None else [columns.measured(parts[-1].responses.shape[1])]
    return stacked(parts, decoding.sampling.end_id), joined(measured) if measured else None


class Columns:
    """Measures a policy's own tokens as they are drawn: an observer of `sample_responses`."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.columns: list[Measured] = []

    def __call__(self, states: Tensor, logits: Tensor, probabilities: Tensor, tokens: Tensor) -> None:
        """Takes one column; the entropy is log sum exp(x) - sum(p x), cheaper than the logarithm of every p."""
        index = tokens.unsqueeze(1)
        logprobs = probabilities.gather(1, index).log()
        scaled = 1.0 / self.policy.sampling.temperature
        total = scaled * logits.gather(1, index).float() - logprobs
        expected = scaled * (probabilities * logits).sum(dim=1, keepdim=True)
        self.columns.append(Measured(logprobs, self.policy.values_of(states), total - expected))

    def measured(self, width: int | None = None) -> Measured:
        """The first `width` columns seen; all of them where None."""
        return Measured(*(torch.cat(fields, dim=1)[:, :width] for fields in zip(*self.columns, strict=True)))


def invert(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """Tokens at which each row's cumulative distribution first exceeds its uniform number.

    Args:
        probabilities: (B, V) float, each row up to a factor.
        uniforms: (B,) float32 in [0, 1).
    Returns: (B,) int64; never a token of probability 0; V where the logits are not finite.
    """
    cumulative = probabilities.cumsum(dim=-1)
    total = cumulative[:, -1:]
    threshold = torch.minimum(uniforms.unsqueeze(1) * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, threshold, right=True).squeeze(1)
