"""The record of a run: its name, description, tags, parameters and data sets, as MLflow shows them."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from rarlhf.config.methods import label_of
from rarlhf.config.params import Params
from tasks.inputs import Inputs, params_hash, work_of
from tasks.tracking.datasets import DataSource, data_of
from tasks.tracking.parent import pipeline_name

HASH_CHARACTERS = 6  # of the hash of the params, in names
NOTE = "mlflow.note.content"  # tag that MLflow shows as the description


@dataclass(frozen=True)
class RunRecord:
    """What is recorded of a run when it starts.

    Attributes:
        name: shown in the list of runs.
        tags: name to value.
        params: dotted key to value.
        data: the data sets that it reads.
        stage: name in DVC of a stage's run, which is below the pipeline's and has the machine's metrics; else None.
    """

    name: str
    tags: Mapping[str, str]
    params: Mapping[str, object] = field(default_factory=dict)
    data: Sequence[DataSource] = ()
    stage: str | None = None


def stage_record(stage: str, arguments: Mapping[str, object], params: Params, inputs: Inputs) -> RunRecord:
    """The record of one run of a stage."""
    method = arguments.get("method", stage if stage in params.methods.start else None)
    tags = {
        **run_tags(params, stage),
        "method": method,
        "seed": arguments.get("seed"),
        "inputs_hash": inputs.hash,
        "dvc_stage": os.environ.get("DVC_STAGE"),
        "pipeline": pipeline_name() or None,
        "mlflow.source.name": f"tasks.{stage}",
        NOTE: _description(stage, arguments, params, inputs) or None,
    }
    flat = flatten(inputs.params) | {"preset": params.preset}
    named = {key: str(value) for key, value in tags.items() if value is not None}
    name = run_name(params, *_words(stage, arguments))
    return RunRecord(name, named, flat, data_of(stage, arguments, inputs), inputs.stage)


def run_tags(params: Params, stage: str) -> dict[str, str]:
    """Tags of every run by which it is found: its kind, and the preset and the params that it belongs to."""
    return {"stage": stage, "preset": params.preset, "params_hash": params_hash(params)}


def run_name(params: Params, *words: object) -> str:
    """A run's name: preset, what it is, and the start of the params' hash, as in `tiny cvar_rlhf 1 3fa9c2`."""
    return " ".join([params.preset, *map(str, words), params_hash(params)[:HASH_CHARACTERS]])


def _words(stage: str, arguments: Mapping[str, object]) -> list[object]:
    """What a stage's run is: a training its method and seed, as a reader thinks of it; another its stage and method."""
    items = [arguments[key] for key in ("split", "method", "seed") if key in arguments]
    return items if {"method", "seed"} <= set(arguments) else [stage, *items]


def _description(stage: str, arguments: Mapping[str, object], params: Params, inputs: Inputs) -> str:
    """A run's description in Markdown: what it does, by which command, and where its outputs are."""
    work = work_of(stage, arguments, params)
    if work is None:
        return ""
    lines = [f"stage `{inputs.stage}` of preset {params.preset}"]
    if "method" in arguments:
        seed = f", seed {arguments['seed']}" if "seed" in arguments else ""
        lines.append(f"method {label_of(str(arguments['method']))} (`{arguments['method']}`){seed}")
    lines += [f"outputs: {', '.join(f'`{path}`' for path in work.outputs)}", f"command: `{work.command}`"]
    about = f"{work.about[:1].upper()}{work.about[1:]}.\n\n" if work.about else ""
    return about + "\n".join(f"- {line}" for line in lines)


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
