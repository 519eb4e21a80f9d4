"""Texts as vectors: the mean of a language model's last hidden states."""

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rarlhf.system.machine import Machine

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@torch.no_grad()
def mean_states(model: "PreTrainedModel", rows: Sequence[Sequence[int]], batch_size: int, machine: Machine) -> Tensor:
    """The mean of the last hidden states over each row's tokens.

    Rows of equal length share a pass, so that none is padded.

    Args:
        model: a causal language model.
        rows: N rows of token ids, none longer than the model's context.
        batch_size: rows per forward pass, >= 1.
        machine: precision.

    Returns: (N, H) float32 on the CPU; 0 for a row without a token.
    """
    found = torch.zeros(len(rows), model.get_input_embeddings().weight.shape[1])
    for _, group in groupby(sorted(range(len(rows)), key=lambda i: len(rows[i])), key=lambda i: len(rows[i])):
        alike = [i for i in group if rows[i]]
        for first in range(0, len(alike), batch_size):
            some = alike[first : first + batch_size]
            tokens = torch.tensor([rows[i] for i in some], device=model.device)
            with machine.autocast():
                states = model.base_model(input_ids=tokens, use_cache=False).last_hidden_state
            found[some] = states.float().mean(dim=1).cpu()
    return found
