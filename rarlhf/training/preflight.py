"""Files and models that params.yaml names, looked for before anything runs.

What the pipeline has already fetched or made is not checked again: a workspace that got results from a colleague, or a
copy in which DVC runs an experiment, need not have the files behind them.
"""

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from rarlhf.config.errors import UserError
from rarlhf.config.function_names import is_function
from rarlhf.config.judging import BASE, NO_JUDGE, PreferenceParams
from rarlhf.config.params import Params
from rarlhf.data.sources import SPLITS, data_file
from rarlhf.models.given import refuse_without_template
from rarlhf.models.hub import fetch_config
from rarlhf.models.loading import load_tokenizer
from rarlhf.rewards.functions import load_function
from rarlhf.utility.tasks import refuse_unready

MADE_HERE = ("scratch", BASE, NO_JUDGE)  # sources that are no folder and no name on the hub


class Made(NamedTuple):
    """Folders of what the pipeline fetches or makes; what a folder holds is not looked for again."""

    raw: Path = Path("data/raw")
    base: Path = Path("models/base")
    reward: Path = Path("models/reward")
    second_scorer: Path = Path("models/second_scorer")
    judgements: Path = Path("judgements")
    utility: Path = Path("utility")


def refuse_missing(params: Params, made: Made) -> None:
    """Refuses data files, models and scorers that are not there.

    Args:
        params: all of params.yaml.
        made: what is not looked for if its folder is not empty.
    Raises: UserError naming the key, its value, and what to do.
    """
    for source in params.functions:
        load_function(source)
    if params.data.source == "file" and not _is_made(made.raw):
        for split in SPLITS if params.data.test_share is None else SPLITS[:1]:
            data_file(params.data, split)
    if not _is_made(made.base):
        _require_model(params.model.source, params.model.revision, "model.source")
    if not _is_made(made.reward):
        _require_model(params.reward.source, params.reward.revision, "reward.source")
        for number, other in enumerate(params.reward.others):
            _require_model(other.source, other.revision, f"reward.others.{number}.source")
    judge = params.judge
    if not _is_made(made.second_scorer):
        _require_model(judge.second_scorer.source, judge.second_scorer.revision, "judge.second_scorer.source")
    if not _is_made(made.judgements):
        _require_model(judge.language_model.source, judge.language_model.revision, "judge.language_model.source")
        _require_model(judge.preference.source, judge.preference.revision, "judge.preference.source")
        _require_chat(judge.preference)
    if params.utility.tasks and not _is_made(made.utility):
        with TemporaryDirectory() as scratch:
            refuse_unready(params.utility, Path(scratch))


def _places(path: str | Path) -> tuple[Path, Path]:
    """Where a relative path may start: here, or in the main repository if this is a copy of it."""
    return Path(path), Path(os.environ.get("DVC_ROOT", "."), path)


def _is_made(folder: Path) -> bool:
    return any(place.is_dir() and any(place.iterdir()) for place in _places(folder))


def _require_model(source: str, revision: str | None, key: str) -> None:
    """A model's configuration, in its folder or on the hub; its weights are checked when it is loaded."""
    if source in MADE_HERE or is_function(source):
        return
    folder = next((place for place in _places(source) if place.exists()), None)
    if folder is None:
        fetch_config(source, revision, key)
    elif not folder.is_dir():
        raise UserError(f"{key} = {source!r}: is a file; give the folder that holds the model")
    elif not any((folder / name).is_file() for name in ("config.json", "adapter_config.json")):
        raise UserError(f"{key} = {source!r}: the folder has no config.json, so it holds no model of transformers")


def _require_chat(params: PreferenceParams) -> None:
    """The chat template of a judge in a local folder; a hub's judge is looked at when it is loaded."""
    folder = next((place for place in _places(params.source) if place.is_dir()), None)
    if params.source != NO_JUDGE and folder is not None:
        refuse_without_template(load_tokenizer(str(folder)), params)
