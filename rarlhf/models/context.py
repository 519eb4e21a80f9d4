"""How many tokens a model was made for: the one reader of a configuration's number of positions."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rarlhf.config.errors import UserError
from rarlhf.config.params import Params

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import PreTrainedConfig

NAMES = ("max_position_embeddings", "n_positions")


def positions_of(config: "PreTrainedConfig | Mapping[str, Any]") -> int | None:
    """Positions of a model by its configuration, an object of transformers or the values of config.json.

    Returns: None where the configuration sets no limit.
    """
    if isinstance(config, Mapping):
        values = config.get("text_config") or config
        return next((int(values[name]) for name in NAMES if values.get(name)), None)
    return getattr(config.get_text_config(), NAMES[0], None)  # transformers gives it under this name for every model


def context_length(folder: Path) -> int | None:
    """Positions of the model in `folder`; None where its configuration sets no limit, or is not there."""
    file = folder / "config.json"
    return positions_of(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else None


def refuse_too_long(folder: Path, params: Params) -> None:
    """Refuses lengths that the model in `folder` has no positions for.

    Raises: UserError naming the keys with their values, and the number of positions.
    """
    context = context_length(folder)
    query, response, sft = params.prompts.tokens, params.ppo.max_new_tokens, params.sft.tokens
    if context is not None and query + response > context:
        raise UserError(
            f"prompts.tokens = {query}, ppo.max_new_tokens = {response}: together {query + response} tokens, and the "
            f"base model {params.model.source} has {context} positions; lower one of them"
        )
    if context is not None and params.sft.epochs and sft > context:
        raise UserError(
            f"sft.tokens = {sft}: the base model {params.model.source} has {context} positions; lower sft.tokens"
        )
