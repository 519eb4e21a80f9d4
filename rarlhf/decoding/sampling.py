"""Sampling responses with a key-value cache.

Each token is drawn by inverting the distribution at one uniform number that belongs to its episode and column. The
draws therefore do not depend on how episodes are batched, and a run that resumes draws what it would have drawn.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from rarlhf.config.errors import UserError
from rarlhf.decoding.compiled import CompiledSteps
from rarlhf.models.episodes import Episodes, Measured, chunks, joined, stacked
from rarlhf.models.policy import Policy, Sampling, logits_of, positions

# Is shown each column: hidden states (B, 1, H), logits and the probabilities they were shaped to (B, V), tokens (B,).
Observer = Callable[[Tensor, Tensor, Tensor, Tensor], None]


@torch.no_grad()
def sample_responses(  # noqa: PLR0913, PLR0917, each is a different thing
    lm: PreTrainedModel,
    queries: Tensor,
    query_mask: Tensor,
    sampling: Sampling,
    uniforms: Tensor,
    observe: Observer | None = None,
    compiled: CompiledSteps | None = None,
) -> Episodes:
    """Samples one response to each query.

    Args:
        lm: the language model, in eval mode.
        queries: (B, Q) int64, padded on the left.
        query_mask: (B, Q) bool.
        sampling: temperature, lengths and end of text.
        uniforms: (B, T) float32 in [0, 1), one for each token that may be drawn.
        observe: is shown each column as it is drawn.
        compiled: the compiled passes of `lm`; None: eager ones.
    Returns: the episodes; responses are as wide as the longest of them and hold the end id after their end.
    Raises: UserError if the model gives no distribution to draw from.
    """
    new_tokens = sampling.max_new_tokens
    decoder = compiled.decoder(query_mask, new_tokens) if compiled else _Decoder(lm, query_mask, new_tokens)
    running = torch.ones(len(queries), dtype=torch.bool, device=queries.device)
    tokens, drawn, real = queries, [], []
    for t in range(new_tokens):
        states = decoder(tokens)
        logits = logits_of(lm, states)
        probabilities = sampling.shape(logits, first=t)[:, 0].softmax(dim=-1)
        token = torch.where(running, invert(probabilities, uniforms[:, t]), sampling.end_id)
        vocab_size = logits.shape[-1]
        tokens = token.unsqueeze(1).clamp(max=vocab_size - 1)
        if observe is not None:
            observe(states, logits[:, 0], probabilities, tokens[:, 0])
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
    return Episodes(queries, query_mask, responses, torch.stack(real, dim=1))


def sample_batches(  # noqa: PLR0913, PLR0917, each is a different thing
    policy: Policy,
    queries: Tensor,
    query_mask: Tensor,
    uniforms: Tensor,
    size: int,
    measure: bool,
    compiled: CompiledSteps | None = None,
) -> tuple[Episodes, Measured | None]:
    """Samples `size` episodes at a time; if `measure`, also keeps what `Policy.measure` would compute of them."""
    parts, measured = [], []
    for rows in chunks(torch.arange(len(queries)), size):
        columns = Columns(policy) if measure else None
        args = (queries[rows], query_mask[rows], policy.sampling, uniforms[rows], columns, compiled)
        parts.append(sample_responses(policy.lm, *args))
        measured += [] if columns is None else [columns.measured()]
    return stacked(parts, policy.sampling.end_id), joined(measured) if measured else None


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


class _Decoder:
    """Runs the backbone over new tokens, with all that came before them in its cache."""

    def __init__(self, lm: PreTrainedModel, query_mask: Tensor, new_tokens: int) -> None:
        self.lm = lm
        self.cache = roomy_cache(lm, query_mask.shape[1] + new_tokens)
        self.seen = 0
        self.padded = not bool(query_mask.all())  # without padding the library needs neither mask nor positions
        self.mask = torch.nn.functional.pad(query_mask, (0, new_tokens), value=True).long()
        self.positions = positions(self.mask)

    def __call__(self, tokens: Tensor) -> Tensor:
        """(B, 1, H) hidden states after `tokens` (B, t)."""
        start, self.seen = self.seen, self.seen + tokens.shape[1]
        padding: dict[str, Any] = {}
        if self.padded:
            padding = {
                "attention_mask": self.mask[:, : self.seen],
                "position_ids": self.positions[:, start : self.seen],
            }
        output = self.lm.base_model(input_ids=tokens, past_key_values=self.cache, use_cache=True, **padding)
        return output.last_hidden_state[:, -1:]


class _RoomyLayer(DynamicLayer):
    """A layer's keys and values in room that is taken once, rather than copied whole at each token."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.rooms = tuple(x.new_empty(*x.shape[:2], self.room, x.shape[3]) for x in (key_states, value_states))
        start = self.get_seq_length()
        end = start + key_states.shape[2]
        for room, new in zip(self.rooms, (key_states, value_states), strict=True):
            room[:, :, start:end] = new
        self.keys, self.values = (room[:, :, :end] for room in self.rooms)
        return self.keys, self.values


def roomy_cache(lm: PreTrainedModel, room: int) -> DynamicCache:
    """The model's own cache, its plain growing layers with room for `room` tokens."""
    cache = DynamicCache(config=lm.config)
    cache.layers = [_RoomyLayer(room) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


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


def left_pad(rows: list[list[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Stacks token lists of unequal lengths: (B, Q) int64 padded on the left, and their (B, Q) bool mask."""
    width = max(len(row) for row in rows)
    tokens = torch.tensor([[pad_id] * (width - len(row)) + row for row in rows], device=device)
    mask = torch.tensor([[False] * (width - len(row)) + [True] * len(row) for row in rows], device=device)
    return tokens, mask
