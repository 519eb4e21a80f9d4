"""New tokens of a language model: their rows in the tables of input and output embeddings.

A whole model gets rows in both tables, as plain transformers loads them. An adapter's backbone gets rows in the input
table alone: its logits stay those of the vocabulary that all models on it share, so that tokens which stand before a
query and are never drawn cost nothing there.

Letters for shapes: K tokens, H hidden size, V rows of the output table.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


def add_rows(lm: PreTrainedModel, tokens: Sequence[int], rows: Tensor) -> None:
    """Gives a whole model these tokens, in place: rows that its table has to spare, or new ones.

    Args:
        lm: its tables become longer where a token is beyond them.
        tokens: (K,) ids.
        rows: (K, H) their input embeddings. Their output embeddings, where those are not the same, are 0.
    """
    if max(tokens) >= lm.get_input_embeddings().weight.shape[0]:
        lm.resize_token_embeddings(max(tokens) + 1, mean_resizing=False)
    inputs, outputs = lm.get_input_embeddings().weight, lm.get_output_embeddings().weight
    with torch.no_grad():
        if outputs is not inputs:
            outputs[tokens] = 0.0
        inputs[tokens] = rows.to(inputs)


def part_tables(lm: PreTrainedModel, size: int) -> None:
    """Gives the input table at least `size` rows of its own, in memory and in place; no other number changes.

    Rows that are new are 0: an adapter has their values. The output table is afterwards a separate one.
    """
    table = _table(lm)
    old = table.weight.detach()
    if size <= len(old) and not lm.config.tie_word_embeddings:
        return
    new = torch.zeros(max(size, len(old)), old.shape[1], dtype=old.dtype, device=old.device)
    new[: len(old)] = old
    table.weight, table.num_embeddings = nn.Parameter(new, requires_grad=False), len(new)
    lm.config.tie_word_embeddings = False


def join_tables(lm: PreTrainedModel, tokens: Sequence[int], tied: bool) -> None:
    """Undoes `part_tables`, in place: the model becomes a whole one whose input and output tables have these tokens.

    Args:
        lm: with the input embeddings of the tokens in its own table.
        tokens: (K,) ids.
        tied: whether its tables were one before.
    """
    table, outputs = _table(lm), lm.get_output_embeddings().weight
    rows = table.weight.detach()[list(tokens)].clone()
    own = nn.Parameter(table.weight.detach()[: len(outputs)].clone())
    table.weight, table.num_embeddings = outputs if tied else own, len(outputs)
    lm.config.tie_word_embeddings = tied
    add_rows(lm, tokens, rows)


def _table(lm: PreTrainedModel) -> nn.Embedding:
    """The module of the input embeddings, below what an adapter puts around it."""
    module = lm.get_input_embeddings()
    return getattr(module, "original_module", module)
