"""How many tokens a language model was made for, read from its folder before anything is computed."""

import json
from pathlib import Path

from rarlhf.config.errors import UserError
from rarlhf.config.params import Params

NAMES = ("max_position_embeddings", "n_positions")


def context_length(folder: Path) -> int | None:
    """Positions of the model in `folder`; None where its configuration sets no limit, or is not there."""
    file = folder / "config.json"
    if not file.is_file():
        return None
    values = json.loads(file.read_text(encoding="utf-8"))
    values = values.get("text_config") or values
    return next((int(values[name]) for name in NAMES if values.get(name)), None)


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
