"""Gradient checkpointing for a model in eval mode: blocks are recomputed in the backward pass instead of stored.

transformers' own switch works only in training mode, where dropout is on; PPO runs without dropout.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from rarlhf.config.errors import UserError


def recompute_blocks(lm: PreTrainedModel) -> None:
    """Makes every transformer block store only its input while gradients are recorded; nothing else changes.

    Raises: UserError if the model's blocks are not of the kind that can be recomputed.
    """
    blocks = [module for module in lm.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not blocks:
        name = type(lm).__name__
        raise UserError(f"model.gradient_checkpointing = True: {name} has no blocks to recompute; set it to false")
    for block in blocks:
        block.forward = _recomputed(block.forward)


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(forward)
    def wrapped(*args: Any, **keywords: Any) -> Any:
        if not torch.is_grad_enabled():  # nothing to recompute: no bookkeeping in sampling
            return forward(*args, **keywords)
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **keywords)

    return wrapped
