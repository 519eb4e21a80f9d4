"""Gradient checkpointing for a model in eval mode: blocks are recomputed in the backward pass instead of stored.

transformers' own switch works only in training mode, where dropout is on; PPO runs without dropout.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from rarlhf.config.errors import UserError


def recompute_blocks(lm: PreTrainedModel) -> None:
    """Makes every transformer block store only its input while gradients are recorded; nothing else changes.

    Raises: UserError if the model's blocks are not of the kind that can be recomputed.
    """
    for block in blocks_of(lm, "model.gradient_checkpointing = True", "false"):
        block.forward = _recomputed(block.forward)


def blocks_of(lm: PreTrainedModel, setting: str, instead: str) -> list[nn.Module]:
    """The model's blocks, in order.

    Args:
        lm: a language model of transformers.
        setting: key and value that need them, for an error.
        instead: the value that does not need them.
    Raises: UserError if the model has none that are marked as such.
    """
    blocks: list[nn.Module] = [module for module in lm.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not blocks:
        raise UserError(f"{setting}: {type(lm).__name__} has no blocks of a known kind; set it to {instead}")
    return blocks


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(forward)
    def wrapped(*args: Any, **keywords: Any) -> Any:
        if not torch.is_grad_enabled():  # nothing to recompute: no bookkeeping in sampling
            return forward(*args, **keywords)
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **keywords)

    return wrapped
