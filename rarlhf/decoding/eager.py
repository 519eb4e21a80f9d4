"""Eager decoding: one uncompiled pass a token, with a cache whose memory is allocated once.

Several responses to one query share the pass over it: equal queries next to each other go through the model once, and
their keys and values are copied. Letters for shapes: B episodes, Q query tokens, T response tokens, H hidden size.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from rarlhf.models.episodes import Episodes
from rarlhf.models.policy import Sampling, logits_of, positions, token_logprobs

WORTH = 2  # responses to a query, in the mean, from which on sharing its pass saves more than the copies cost


class EagerDecoder:
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
        return self.states(tokens)[:, -1:]

    def states(self, tokens: Tensor) -> Tensor:
        """(B, t, H) hidden states of new tokens (B, t)."""
        start, self.seen = self.seen, self.seen + tokens.shape[1]
        if start:
            return self._pass(tokens, slice(None), start)
        first, copies = alike(tokens, self.mask[:, : self.seen])
        if len(first) * WORTH > len(tokens):
            return self._pass(tokens, slice(None), start)
        states = self._pass(tokens[first], first, start)
        self.cache.reorder_cache(copies)
        return states[copies]

    def _pass(self, tokens: Tensor, rows: Tensor | slice, start: int) -> Tensor:
        padding: dict[str, Any] = {}
        if self.padded:
            padding = {
                "attention_mask": self.mask[rows, : self.seen],
                "position_ids": self.positions[rows, start : self.seen],
            }
        output = self.lm.base_model(input_ids=tokens, past_key_values=self.cache, use_cache=True, **padding)
        return output.last_hidden_state


def alike(tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Which rows differ from the one before them.

    Args:
        tokens: (B, Q).
        mask: (B, Q).

    Returns: (D,) int64, the first of each run of equal rows; and (B,) int64, of each row the index of its run.
    """
    both = torch.stack([tokens, mask.to(tokens.dtype)])
    new = (both[:, 1:] != both[:, :-1]).any(dim=2).any(dim=0)
    starts = torch.nn.functional.pad(new, (1, 0), value=True)
    return starts.nonzero().squeeze(1), starts.cumsum(dim=0) - 1


def shared_logprobs(lm: PreTrainedModel, episodes: Episodes, sampling: Sampling) -> Tensor:
    """(B, T) log-probabilities of the responses, as `response_logprobs`, with one pass over each query.

    Args:
        lm: a plain language model; no gradient flows.
        episodes: those of one query next to each other.
        sampling: temperature and lengths.
    """
    decoder = EagerDecoder(lm, episodes.query_mask, episodes.responses.shape[1])
    states = [decoder(episodes.queries)]
    if episodes.responses.shape[1] > 1:
        states.append(decoder.states(episodes.responses[:, :-1]))
    return token_logprobs(logits_of(lm, torch.cat(states, dim=1)), episodes.responses, sampling)


class _RoomyLayer(DynamicLayer):
    """A layer's keys and values in memory that is allocated once, so that they are not copied at each token."""

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

    def reorder_cache(self, beam_idx: Tensor) -> None:
        end = self.get_seq_length()
        self.rooms = tuple(room.index_select(0, beam_idx) for room in self.rooms)
        self.keys, self.values = (room[:, :, :end] for room in self.rooms)


def roomy_cache(lm: PreTrainedModel, room: int) -> DynamicCache:
    """The model's own cache, in which plain growing layers have memory for `room` tokens."""
    cache = DynamicCache(config=lm.config)
    cache.layers = [_RoomyLayer(room) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
