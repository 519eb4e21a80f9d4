"""Texts scored by hand: with the pipeline's reward model as params.yaml describes it, or with any classifier."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from rarlhf.errors import UserError
from rarlhf.params import RewardParams, load_params
from rarlhf.reward_model import Score, load_reward_model
from rarlhf.runtime import Machine

PIPELINES = Path("models/reward")
PARAMS = Path("params.yaml")


class ScoreOptions(NamedTuple):
    """What a command line says of the reward model; None where it says nothing."""

    label: str | None
    sign: int | None
    max_length: int | None
    batch_size: int | None


def open_reward_model(folder: Path | None, options: ScoreOptions, machine: Machine) -> Score:
    """Opens a reward model for scoring.

    Args:
        folder: of a classifier. None: the pipeline's, with section `reward` of params.yaml where that is there.
        options: values that stand instead of those of params.yaml.
        machine: device and precision.
    Raises: UserError if there is no such model, or it is not said which of its outputs is the score.
    """
    place = folder or PIPELINES
    if not (place / "config.json").is_file() and not (folder is None and PARAMS.is_file() and place.is_dir()):
        hint = "make it (`dvc repro reward`) or name a folder by --reward" if folder is None else "name another one"
        raise UserError(f"{place} is no folder of a reward model: it has no config.json; {hint}")
    given = {name: value for name, value in options._asdict().items() if value is not None}
    if "label" in given and given["label"].isdigit():
        given["label"] = int(given["label"])
    if folder is None and PARAMS.is_file():
        return load_reward_model(place, load_params(PARAMS).reward.model_copy(update=given), machine)
    return load_reward_model(place, RewardParams.model_construct(**(_defaults(place, given) | given)), machine)


def _defaults(folder: Path, given: dict[str, Any]) -> dict[str, Any]:
    """What the classifier itself says, and the rest of section `reward`."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{folder}/config.json is not JSON ({error}); make or copy the folder again") from error
    labels = config.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
    if "label" not in given and len(labels) > 1:
        names = ", ".join(f"{index}: {name}" for index, name in labels.items())
        raise UserError(f"{folder} has several outputs ({names}); name the one that is the score by --label")
    context = config.get("max_position_embeddings") or config.get("n_positions") or 512
    plain = {"source": str(folder), "output": "logit", "sign": 1, "others": []}
    return plain | {"label": 0, "max_length": context, "batch_size": 32}
