"""Eager decoding: one uncompiled pass a token, with a cache whose memory is allocated once."""

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from rarlhf.models.policy import positions


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


def roomy_cache(lm: PreTrainedModel, room: int) -> DynamicCache:
    """The model's own cache, in which plain growing layers have memory for `room` tokens."""
    cache = DynamicCache(config=lm.config)
    cache.layers = [_RoomyLayer(room) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
