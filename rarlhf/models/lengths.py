"""Whether queries, responses and texts fit the base model, known before anything is computed."""

from pathlib import Path

from rarlhf.config.errors import UserError
from rarlhf.config.params import Params
from rarlhf.models.context import context_length


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
