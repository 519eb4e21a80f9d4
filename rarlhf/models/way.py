"""A model's own way of being decoded: behind certain tokens, and without ever drawing some.

A training whose model needs that leaves a note in the model's folder (`WAY`). Whatever of this project draws from a
folder's model or measures it reads the note by `own_way`, so that nobody has to say it again.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rarlhf.config.errors import UserError
from rarlhf.models.files import json_object

WAY = "decoding.json"  # in the folder of a model that is not sampled as it is


class Way(NamedTuple):
    """How a model is to be decoded."""

    before: Sequence[int] = ()  # tokens that stand before each query
    never: Sequence[int] = ()  # tokens that no response has


def write_way(way: Way, lm: PreTrainedModel, folder: Path) -> None:
    """Leaves the note in a model's folder, and a generation configuration by which transformers never draws `never`."""
    config = lm.generation_config
    config.suppress_tokens = sorted({*(config.suppress_tokens or []), *way.never})
    config.save_pretrained(folder)
    values = {key: list(tokens) for key, tokens in way._asdict().items()}
    (folder / WAY).write_text(json.dumps(values) + "\n", encoding="utf-8")


def own_way(folder: Path) -> Way:
    """The note in a model's folder; an empty one for a model that is sampled as it is.

    Raises: UserError if the note has another form.
    """
    if not (folder / WAY).is_file():
        return Way()
    values = json_object(folder / WAY)
    lists = [value for value in values.values() if isinstance(value, list)]
    tokens = [token for value in lists for token in value]
    known = set(values) == set(Way._fields) and len(lists) == len(values)
    if not known or not all(type(token) is int and token >= 0 for token in tokens):
        raise UserError(
            f"{folder / WAY} must have {' and '.join(Way._fields)}, lists of tokens; make or copy the folder again"
        )
    return Way(**values)


def without(logits: Tensor, never: Sequence[int]) -> Tensor:
    """Logits (..., V) with minus infinity for the tokens `never`: probability 0, and no gradient.

    Tokens beyond the V that the model has logits for have probability 0 anyway.
    """
    there = [token for token in never if token < logits.shape[-1]]
    index = torch.tensor(there, dtype=torch.int64, device=logits.device)
    return logits.index_fill(-1, index, -torch.inf) if there else logits
