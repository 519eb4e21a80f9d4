"""The record of a run: its name, tags, parameters and data sets, as MLflow shows them."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from rarlhf.config.params import Params
from tasks.inputs import Inputs, description
from tasks.tracking.parent import pipeline_name

DATA_FOLDERS = ("data/raw", "data/prompts", "generations")  # inputs that are logged as data sets


@dataclass(frozen=True)
class RunRecord:
    """What is recorded of a run when it starts.

    Attributes:
        name: shown in the list of runs.
        tags: name to value.
        params: dotted key to value.
        data: path of each input data set to its SHA-256.
        stage: name in DVC of a stage's run, which is below the pipeline's and has the machine's metrics; else None.
    """

    name: str
    tags: Mapping[str, str]
    params: Mapping[str, object] = field(default_factory=dict)
    data: Mapping[str, str] = field(default_factory=dict)
    stage: str | None = None


def stage_record(stage: str, arguments: Mapping[str, object], params: Params, inputs: Inputs) -> RunRecord:
    """The record of one run of a stage."""
    method = arguments.get("method", stage if stage in params.methods.start else None)
    tags = {
        "stage": stage,
        "preset": params.preset,
        "method": method,
        "seed": arguments.get("seed"),
        "inputs_hash": inputs.hash,
        "dvc_stage": os.environ.get("DVC_STAGE"),
        "pipeline": pipeline_name() or None,
        "mlflow.source.name": f"tasks.{stage}",
        "mlflow.note.content": description(stage),
    }
    data = {path: digest for path, digest in inputs.files.items() if path.startswith(DATA_FOLDERS)}
    flat = flatten(inputs.params) | {"preset": params.preset}
    named = {key: str(value) for key, value in tags.items() if value is not None}
    return RunRecord(_shown(inputs.stage, arguments), named, flat, data, inputs.stage)


def _shown(stage: str, arguments: Mapping[str, object]) -> str:
    """Name of a run on MLflow's page: of a method with a seed `ra_rlhf@1`, as a reader thinks of it."""
    return "{method}@{seed}".format(**arguments) if {"method", "seed"} <= set(arguments) else stage


def all_params(params: Params) -> dict[str, object]:
    """Every parameter by its dotted key."""
    return flatten(params.model_dump(mode="json"))


def flatten(values: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Nested mappings as one with dotted keys."""
    return dict(_flatten(values, prefix))


def _flatten(values: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in values.items():
        name = ".".join(filter(None, (prefix, key)))
        if isinstance(value, Mapping):
            yield from _flatten(value, name)
        else:
            yield name, value
