"""Decoding for accelerators: keys and values in tensors of fixed size, and a compiled pass of one token.

An eager pass of one token launches hundreds of small kernels, and launching them takes longer than running them.
Compiled, an accelerator replays them as one graph, which needs every tensor at the same place each time.
"""

import torch
from torch import Tensor
from transformers import PreTrainedModel, StaticCache

from rarlhf.config.errors import UserError
from rarlhf.models.policy import positions
from rarlhf.system.machine import Machine


class CompiledSteps:
    """One model's compiled pass. Each size of batch has a cache of its own and compiles when it comes first."""

    def __init__(self, lm: PreTrainedModel) -> None:
        """Raises: UserError if the model's attention does not take the masks that are made here."""
        kind = lm.config._attn_implementation
        if kind not in {"sdpa", "eager"}:
            raise UserError(f"runtime.decode = 'compiled': not with attention {kind!r} of this model; use eager")
        self.lm = lm
        self.additive = kind == "eager"
        mode = "reduce-overhead" if lm.device.type == "cuda" else "default"  # CUDA graphs
        self.forward = torch.compile(lm.base_model.forward, mode=mode, dynamic=False)
        self.caches: dict[tuple[int, int], StaticCache] = {}

    def decoder(self, query_mask: Tensor, new_tokens: int) -> "StaticDecoder":
        """A decoder of responses of up to `new_tokens` to queries with `query_mask` (B, Q); ends the one before it."""
        size = (len(query_mask), query_mask.shape[1] + new_tokens)
        if size in self.caches:
            self.caches[size].reset()
        else:
            self.caches[size] = StaticCache(config=self.lm.config, max_cache_len=size[1])
        return StaticDecoder(self, self.caches[size], query_mask, new_tokens)


class LatestCompiled:
    """The compiled passes of one model at a time: made when it comes first, forgotten with the next."""

    def __init__(self) -> None:
        self.steps: CompiledSteps | None = None

    def of(self, lm: PreTrainedModel, machine: Machine) -> CompiledSteps | None:
        """The compiled passes of `lm`; None where the machine decodes eagerly.

        Raises: UserError as `CompiledSteps`.
        """
        if not machine.compiled:
            return None
        if self.steps is None or self.steps.lm is not lm:
            self.steps = CompiledSteps(lm)
        return self.steps


class StaticDecoder:
    """Runs the backbone over new tokens, eagerly over the queries and compiled over single tokens."""

    def __init__(self, steps: CompiledSteps, cache: StaticCache, query_mask: Tensor, new_tokens: int) -> None:
        self.steps = steps
        self.cache = cache
        self.seen = 0
        self.mask = torch.nn.functional.pad(query_mask, (0, new_tokens), value=True)
        self.positions = positions(self.mask)
        self.columns = torch.arange(self.mask.shape[1], device=query_mask.device)

    def __call__(self, tokens: Tensor) -> Tensor:
        """(B, 1, H) hidden states after `tokens` (B, t)."""
        start, self.seen = self.seen, self.seen + tokens.shape[1]
        forward = self.steps.forward if tokens.shape[1] == 1 else self.steps.lm.base_model.forward
        output = forward(
            input_ids=tokens,
            past_key_values=self.cache,
            use_cache=True,
            attention_mask=self._visible(start),
            position_ids=self.positions[:, start : self.seen].contiguous(),
        )
        return output.last_hidden_state[:, -1:].clone()  # a replayed graph writes over what it gave before

    def _visible(self, start: int) -> Tensor:
        """(B, 1, t, room) which columns each new token looks at, in the form that the model's attention takes."""
        own = self.columns[start : self.seen].unsqueeze(1)
        before = self.mask.unsqueeze(1) & (self.columns < own)
        visible = (before | (self.columns == own)).unsqueeze(1)  # padding sees itself: a row of nothing gives no number
        if not self.steps.additive:
            return visible
        dtype = self.steps.lm.dtype
        return torch.zeros_like(visible, dtype=dtype).masked_fill(~visible, torch.finfo(dtype).min)
