"""How many tokens a model was made for: the one reader of a configuration's number of positions."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import PreTrainedConfig

NAMES = ("max_position_embeddings", "n_positions")


def positions_of(config: "PreTrainedConfig | Mapping[str, Any]") -> int | None:
    """Positions of a model by its configuration, an object of transformers or the values of config.json.

    Returns: None if the configuration sets no limit.
    """
    if isinstance(config, Mapping):
        values = config.get("text_config") or config
        return next((int(values[name]) for name in NAMES if values.get(name)), None)
    return getattr(config.get_text_config(), NAMES[0], None)  # transformers gives it under this name for every model


def context_length(folder: Path) -> int | None:
    """Positions of the model in `folder`; None if its configuration sets no limit, or there is none."""
    file = folder / "config.json"
    return positions_of(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else None
