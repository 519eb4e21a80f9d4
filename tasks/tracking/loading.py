"""Loads a model of MLflow's registry, from the repository's root: `load_model("models:/tiny-rlhf@seed-1")`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rarlhf.config.errors import UserError
from rarlhf.config.judging import RewardParams, SecondScorerParams
from tasks.inputs import digest
from tasks.tracking.models import REFERENCE, WEIGHTS

if TYPE_CHECKING:
    import pandas

    from rarlhf.decoding.writing import OpenModel
    from rarlhf.rewards.scorers import Score

BATCH_SIZE = 32  # continuations written at once


class Policy:
    """A model that continues prompts."""

    def __init__(self, model: "OpenModel", draw: Mapping[str, Any]) -> None:
        self._model = model
        self._draw = draw

    def predict(self, model_input: "pandas.DataFrame", params: Mapping[str, Any] | None = None) -> list[str]:
        """One continuation of each prompt; `params` may replace seed, temperature and the longest continuation."""
        from rarlhf.decoding.writing import Choices, write

        chosen = {**self._draw, **(params or {})}
        choices = Choices(1, chosen["max_new_tokens"], chosen["temperature"], chosen["seed"], BATCH_SIZE)
        return [written.text for written in write(self._model, list(model_input["prompt"]), choices)]


class Scorer:
    """A model that scores texts."""

    def __init__(self, score: "Score") -> None:
        self._score = score

    def predict(self, model_input: "pandas.DataFrame", params: Mapping[str, Any] | None = None) -> list[float]:
        """The score of each text; higher is better."""
        return [float(value) for value in self._score(list(model_input["text"])).tolist()]


def _load_pyfunc(path: str) -> Policy | Scorer:
    """What `mlflow.pyfunc` calls with the folder of a version.

    Raises: UserError if the weights are not there, or are those of another version.
    """
    import torch

    from rarlhf.system.machine import Machine

    reference = json.loads(Path(path, REFERENCE).read_text(encoding="utf-8"))
    folder = _weights(Path(path), reference)
    machine = Machine(torch.device("cuda" if torch.cuda.is_available() else "cpu"), torch.float32)
    if "scorer" in reference:
        from rarlhf.rewards.scorers import load_reward_model

        kinds = {kind.section: kind for kind in (RewardParams, SecondScorerParams)}
        section = kinds[reference["scorer"]["section"]].model_validate(reference["scorer"]["params"])
        return Scorer(load_reward_model(folder, section, machine))
    from rarlhf.decoding.writing import open_model

    return Policy(open_model(folder, machine.device), reference["draw"])


def _weights(path: Path, reference: Mapping[str, Any]) -> Path:
    """The folder of the weights: the copy, or where they are in the repository."""
    if (path / WEIGHTS).is_dir():
        return path / WEIGHTS
    folder = Path(reference["path"])
    back = "check out the version's commit (its tag git_commit) and run `dvc checkout`"
    if not folder.is_dir():
        raise UserError(f"{folder} is missing here: go to the repository's root; if it is not there either, {back}")
    if digest(folder) != reference["sha256"]:
        raise UserError(f"{folder} holds other weights than this version: {back}")
    return folder
