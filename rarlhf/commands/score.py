"""What `rarlhf score` does: opens the pipeline's reward model as params.yaml describes it, or any classifier."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rarlhf.config.errors import UserError
from rarlhf.config.function_names import is_function
from rarlhf.config.judging import RewardParams
from rarlhf.config.load import load_params
from rarlhf.models.context import positions_of
from rarlhf.models.files import json_object
from rarlhf.models.folders import refuse_no_classifier

if TYPE_CHECKING:
    from rarlhf.rewards.scorers import Score
    from rarlhf.system.machine import Machine

PIPELINES = Path("models/reward")
PARAMS = Path("params.yaml")
CONTEXT = 512  # tokens of a text, for a classifier whose configuration sets no limit
AFTER_PADDING = ("camembert", "longformer", "mpnet")  # like RoBERTa's, their positions start after padding's number


class ScoreOptions(NamedTuple):
    """Options of the command line for the reward model; None: not given."""

    label: str | None
    sign: int | None
    max_length: int | None
    batch_size: int | None


def chosen_scorer(folder: Path | None, options: ScoreOptions, named: str = "--reward") -> tuple[Path, RewardParams]:
    """The reward model that a command line names, found without slow imports.

    Args:
        folder: of a classifier. None: the pipeline's, with section `reward` of params.yaml if that file exists.
        options: values that replace those of params.yaml.
        named: the option of the command that names a folder.
    Returns: its folder, and section `reward`.
    Raises: UserError if there is no such model, it has several outputs and none is chosen, or an option does not apply
        to it.
    """
    given = {name: value for name, value in options._asdict().items() if value is not None}
    if "label" in given and given["label"].isdigit():
        given["label"] = int(given["label"])
    if folder is not None or not PARAMS.is_file():
        place = folder or PIPELINES
        if folder is None and not (place / "config.json").is_file():
            raise _not_made(place, named)
        refuse_no_classifier(place)
        return place, RewardParams.model_construct(**(_defaults(place, given) | given))
    params = load_params(PARAMS).reward
    if is_function(params.source):
        _refuse_useless(params.source, given, named)
    elif not (PIPELINES / "config.json").is_file():
        raise _not_made(PIPELINES, named)
    if not PIPELINES.is_dir():
        raise _not_made(PIPELINES, named)
    return PIPELINES, params.model_copy(update=given)


def _not_made(place: Path, named: str) -> UserError:
    return UserError(
        f"{place} is no folder of a reward model: it has no config.json; make it (`dvc repro reward`) or name a folder "
        f"by {named}"
    )


def _refuse_useless(source: str, given: Mapping[str, Any], named: str) -> None:
    useless = [f"--{name.replace('_', '-')}" for name in ("label", "max_length") if name in given]
    if useless:
        raise UserError(
            f"{' and '.join(useless)}: reward.source = {source!r} in {PARAMS} is a function, which knows no such "
            f"thing; leave it out, or name a classifier by {named}"
        )


def open_reward_model(folder: Path, params: RewardParams, machine: "Machine") -> "Score":
    """Opens a reward model for scoring.

    Args:
        folder: as `chosen_scorer` gives it.
        params: the same.
        machine: device and precision.
    Raises: UserError if it cannot be loaded, or has no such output.
    """
    from rarlhf.rewards.scorers import load_reward_model

    return load_reward_model(folder, params, machine)


def _defaults(folder: Path, given: dict[str, Any]) -> dict[str, Any]:
    """Section `reward` of a classifier: what its own configuration says, and defaults for the rest."""
    config = json_object(folder / "config.json")
    labels = config.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
    if "label" not in given and len(labels) > 1:
        names = ", ".join(f"{index}: {name}" for index, name in labels.items())
        raise UserError(f"{folder} has several outputs ({names}); name the one that is the score by --label")
    context = positions_of(config) or CONTEXT
    if "roberta" in str(config.get("model_type")) or config.get("model_type") in AFTER_PADDING:
        context -= config.get("pad_token_id", 1) + 1
    plain = {"source": str(folder), "output": "logit", "sign": 1, "others": []}
    return plain | {"label": 0, "max_length": context, "batch_size": 32}
