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
from rarlhf.decoding.compiled import CompiledSteps
from rarlhf.decoding.eager import EagerDecoder
from rarlhf.decoding.rules import DecodingRule, Prompts
from rarlhf.models.episodes import Episodes, Measured, chunks, joined, stacked, widened
from rarlhf.models.policy import Policy, Sampling, logits_of
from rarlhf.system.streams import generator

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
    choice_kl: float = 0.0  # nats that the choice of a draw adds to a response's KL at most, in the mean


def uniform_numbers(names: Sequence[object], shape: Sequence[int], draws: int = 1) -> Tensor:
    """(n, *shape) float32 in [0, 1) on the CPU: the first draw from the stream `names`, each further one from its own.

    So a rule of n draws finds the response of plain sampling among its draws, and those of a rule of fewer draws.
    """
    streams = [generator(*names, *([draw] if draw else [])) for draw in range(draws)]
    return torch.stack([torch.rand(*shape, generator=stream) for stream in streams])


def draw(decoding: Decoding, prompts: Prompts, uniforms: Tensor) -> Responses:
    """One response to each prompt, as the rule draws and chooses it.

    Args:
        decoding: model and rule.
        prompts: B queries.
        uniforms: (n, B, T) float32 in [0, 1), with n the rule's draws; 1 without a rule.
    Raises: UserError as `sample_responses`.
    """
    rule = decoding.rule
    drawn, logprobs = zip(*(_with_logprobs(decoding, prompts, numbers) for numbers in uniforms), strict=True)
    if rule is None or rule.draws == 1:
        return Responses(drawn[0], logprobs[0])
    count = len(prompts.tokens)
    rows = rule.choose(drawn) * count + torch.arange(count, device=prompts.tokens.device)
    kept = stacked(list(drawn), decoding.sampling.end_id).rows(rows)
    return Responses(kept, widened(list(logprobs), 0.0)[rows], rule.choice_kl)


def _with_logprobs(decoding: Decoding, prompts: Prompts, uniforms: Tensor) -> tuple[Episodes, Tensor]:
    """One draw, and the log-probabilities (B, T) of its tokens under the distributions they were drawn from."""
    columns: list[Tensor] = []

    def observe(_states: Tensor, _logits: Tensor, probabilities: Tensor, tokens: Tensor) -> None:
        columns.append(probabilities.gather(1, tokens.unsqueeze(1)).log())

    return sample_responses(decoding, prompts, uniforms, observe), torch.cat(columns, dim=1)


@torch.no_grad()
def sample_responses(
    decoding: Decoding, prompts: Prompts, uniforms: Tensor, observe: Observer | None = None
) -> Episodes:
    """Draws one response to each prompt, once.

    Args:
        decoding: model and rule, whose `choose` is not asked.
        prompts: B queries.
        uniforms: (B, T) float32 in [0, 1), one for each token that may be drawn.
        observe: is shown each column as it is drawn.
    Returns: the episodes; responses are as wide as the longest of them and hold the end id after their end.
    Raises: UserError if the model gives no distribution to draw from.
    """
    sampling, new_tokens = decoding.sampling, decoding.sampling.max_new_tokens
    decoder, processors = _begin(decoding, prompts)
    running = torch.ones(len(prompts.tokens), dtype=torch.bool, device=prompts.tokens.device)
    tokens, seen, drawn, real = prompts.tokens, [prompts.tokens], [], []
    for t in range(new_tokens):
        states = decoder(tokens)
        logits = logits_of(decoding.lm, states)
        if processors:
            logits = processors(torch.cat(seen, dim=1), logits[:, 0]).unsqueeze(1)
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
        if not running.any():
            break
    responses = torch.stack(drawn, dim=1)
    if (responses >= vocab_size).any():  # asked once, not at every token: each time waits for the device
        raise UserError(
            "the model's logits are not finite, so nothing can be drawn from them: its weights are too large"
        )
    return Episodes(*prompts, responses, torch.stack(real, dim=1))


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
        measured += [] if columns is None else [columns.measured()]
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

    def measured(self) -> Measured:
        """All columns seen."""
        return Measured(*(torch.cat(fields, dim=1) for fields in zip(*self.columns, strict=True)))


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


def left_pad(rows: Sequence[list[int]], pad_id: int, device: torch.device) -> Prompts:
    """Stacks lists of token ids of unequal lengths."""
    width = max(len(row) for row in rows)
    tokens = torch.tensor([[pad_id] * (width - len(row)) + row for row in rows], device=device)
    mask = torch.tensor([[False] * (width - len(row)) + [True] * len(row) for row in rows], device=device)
    return Prompts(tokens, mask)
