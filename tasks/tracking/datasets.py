"""The data sets that a stage reads, as MLflow shows them: name, digest, place in the repository, rows and schema."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.inputs import Inputs, digest

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput

TRAINING, EVALUATION, SAMPLING = "training", "evaluation", "sampling"
# Of each stage the rows that it reads, a file or a folder of files, and for what.
READS: Mapping[str, Mapping[str, str]] = {
    "base": {"data/raw/train.jsonl": TRAINING},
    "reward": {"data/raw/train.jsonl": TRAINING, "data/raw/test.jsonl": EVALUATION},
    "prompts": {"data/raw/train.jsonl": SAMPLING, "data/raw/test.jsonl": SAMPLING},
    "sft": {"data/prompts/sft.jsonl": TRAINING},
    "samples": {"data/prompts/{split}.jsonl": SAMPLING},
    "plan": {"data/samples/train": TRAINING},
    "ppo": {"data/prompts/train.jsonl": TRAINING},
    "fit": {"data/samples/train": TRAINING},
    "generate_start": {"data/prompts/test.jsonl": EVALUATION},
    "generate": {"data/prompts/test.jsonl": EVALUATION},
    "generate_fit": {"data/prompts/test.jsonl": EVALUATION},
    "tuned": {"data/raw/train.jsonl": TRAINING, "data/prompts/train.jsonl": TRAINING},
    "generate_tuned": {"data/prompts/test.jsonl": EVALUATION},
    "generate_decoded": {"data/prompts/test.jsonl": EVALUATION},
    "generate_guided": {"data/prompts/test.jsonl": EVALUATION},
    "head": {"data/samples/train": TRAINING},
    "generate_headed": {"data/prompts/test.jsonl": EVALUATION},
    "second_scorer": {"data/raw/second_scorer.jsonl": TRAINING, "data/raw/test.jsonl": EVALUATION},
    "judge": {"generations": EVALUATION},
    "utility": {"data/raw/train.jsonl": TRAINING, "data/raw/test.jsonl": EVALUATION},
    "evaluate": {
        "data/prompts/test.jsonl": EVALUATION,
        "data/prompts/perplexity.jsonl": EVALUATION,
        "data/samples/test": EVALUATION,
        "generations": EVALUATION,
    },
}
DIGEST_CHARACTERS = 16  # of the SHA-256; MLflow takes 36 at most
CONTEXT = "mlflow.data.context"
TYPES = {str: "string", bool: "boolean", int: "long", float: "double"}  # of Python in MLflow


@dataclass(frozen=True)
class DataSource:
    """A data set that a run reads.

    Attributes:
        path: of a file of JSON lines, or a folder of such files, within the repository.
        context: what it is read for.
    """

    path: str
    context: str


def data_of(stage: str, arguments: Mapping[str, object], inputs: Inputs) -> list[DataSource]:
    """The data sets that a stage reads; of those in the table, the ones that dvc.yaml gives it."""
    named = {path.format(**arguments): context for path, context in READS.get(stage, {}).items()}
    given = [Path(path) for path in inputs.files]
    return [
        DataSource(path, context)
        for path, context in named.items()
        if any(Path(path).is_relative_to(folder) for folder in given)
    ]


def dataset_input(source: DataSource) -> "DatasetInput":
    """A data set as MLflow logs it.

    Raises: OSError if a file cannot be read; ValueError if its first line is not a JSON object.
    """
    from mlflow.entities import Dataset, DatasetInput, InputTag

    path = Path(source.path)
    files = sorted(path.rglob("*.jsonl")) if path.is_dir() else [path]
    dataset = Dataset(
        source.path.removeprefix("data/").removesuffix(".jsonl"),
        digest(path)[:DIGEST_CHARACTERS],
        "local",
        json.dumps({"uri": source.path}),
        schema=json.dumps({"mlflow_colspec": columns(files[0])}) if files else None,
        profile=json.dumps({"num_rows": sum(map(_rows, files))}),
    )
    return DatasetInput(dataset, tags=[InputTag(CONTEXT, source.context)])


def columns(file: Path) -> list[dict[str, object]]:
    """Name and type of each key of a file's first line, in MLflow's words; empty for an empty file."""
    with file.open(encoding="utf-8") as lines:
        first = json.loads(next(lines, "{}"))
    return [{**_type(value), "name": name, "required": value is not None} for name, value in first.items()]


def _type(value: object) -> dict[str, object]:
    if isinstance(value, list):
        return {"type": "array", "items": _type(value[0] if value else "")}
    if isinstance(value, dict):
        return {"type": "object", "properties": {name: _type(item) for name, item in value.items()}}
    return {"type": TYPES.get(type(value), "string")}


def _rows(file: Path) -> int:
    with file.open("rb") as stream:
        return sum(1 for _ in stream)
