"""The test results of each model: on the run that trained it, on the model, and on its version in the registry."""

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.inputs import digest
from tasks.tracking.datasets import EVALUATION, DataSource, dataset_input
from tasks.tracking.models import alias_of, model_of, registered_name, version_of

if TYPE_CHECKING:
    from mlflow.tracking.client import MlflowClient

    from rarlhf.evaluation.comparisons import Evaluation

TEST = DataSource("data/prompts/test.jsonl", EVALUATION)
DECIMALS = 4  # more would fill the columns of MLflow's lists; `results.json` of stage `evaluate` has all of them
VERSION_METRICS = ("reward_mean", "reward_prompt_tail", "reward_cvar_10", "kl_sft")  # shown as tags of a version


def model_results(evaluation: "Evaluation", models: Path) -> Iterator[tuple[Path, dict[str, float]]]:
    """Each model's folder with its metrics: a training's own; the means over seeds where all share a model."""
    for method, spreads in evaluation["methods"].items():
        if (models / method / "config.json").is_file():
            yield models / method, {metric: spread["mean"] for metric, spread in spreads.items()}
            continue
        for number, seed in enumerate(evaluation["seeds"]):
            values = {metric: spread["per_seed"][number] for metric, spread in spreads.items()}
            yield models / method / str(seed), values


def rounded(values: Mapping[str, float]) -> dict[str, float]:
    """Numbers as MLflow's lists show them."""
    return {key: round(value, DECIMALS) for key, value in values.items()}


def log_result(client: "MlflowClient", preset: str, folder: Path, values: Mapping[str, float], mine: bool) -> None:
    """Logs the results of one model; nothing if it is not in the registry, and nothing that is there already.

    Args:
        client: of MLflow.
        preset: name of the preset, which the model is registered under.
        folder: of the model.
        values: its metrics.
        mine: whether the folder is the repository's own, which the registry's aliases follow.
    """
    name = registered_name(preset, folder)
    version = version_of(client, name, digest(folder)) if folder.is_dir() else None
    if version is None:
        return
    first = {metric: values[metric] for metric in VERSION_METRICS if metric in values}
    _log(client, str(version.run_id), model_of(version), rounded({**first, **values}))
    for metric, value in first.items():
        if version.tags.get(metric) != f"{value:.2f}":
            client.set_model_version_tag(name, version.version, metric, f"{value:.2f}")
    if mine:
        client.set_registered_model_alias(name, alias_of(folder), version.version)


def _log(client: "MlflowClient", run: str, model: str, values: Mapping[str, float]) -> None:
    from mlflow.entities import Metric

    test = dataset_input(TEST).dataset
    known = {
        (metric.key, metric.dataset_digest): metric.value for metric in client.get_logged_model(model).metrics or []
    }
    now = int(time.time() * 1000)
    new = {key: value for key, value in values.items() if known.get((key, test.digest)) != value}
    metrics = [Metric(key, value, now, 0, model, test.name, test.digest, run) for key, value in new.items()]
    client.log_batch(run, metrics)
