import json
import re
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tasks.inputs import Inputs, digest
from tasks.tracking.datasets import READS, DataSource, columns, data_of, dataset_input

REPOSITORY = Path(__file__).parents[3]
ENTRIES: dict[str, Any] = YAML(typ="safe").load((REPOSITORY / "dvc.yaml").read_text("utf-8"))["stages"]
STAGES = {name: entry.get("do", entry) for name, entry in ENTRIES.items()}
ROWS = ("data/raw", "data/prompts", "data/samples", "generations")  # folders of rows
KINDS = ("", "_start", "_fit", "_tuned", "_decoded", "_guided", "_headed")
SHARED = dict.fromkeys((f"generate{kind}" for kind in KINDS), "continuations")
IN_THE_LIBRARY = ("utility", "evaluate", "tuned")  # stages whose files the library names


def test_name_place_rows_and_schema(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path("data/prompts/train.jsonl")
    path.parent.mkdir(parents=True)
    path.write_text('{"prompt": "a", "score": 0.5, "id": 3}\n{"prompt": "b", "score": 1, "id": 4}\n')
    logged = dataset_input(DataSource(str(path), "training"))
    dataset = logged.dataset
    assert (dataset.name, dataset.digest) == ("prompts/train", digest(path)[:16])
    assert json.loads(dataset.source) == {"uri": "data/prompts/train.jsonl"}  # nothing of this machine
    assert json.loads(dataset.profile) == {"num_rows": 2}
    named = [(column["name"], column["type"]) for column in json.loads(dataset.schema)["mlflow_colspec"]]
    assert named == [("prompt", "string"), ("score", "double"), ("id", "long")]
    assert [(tag.key, tag.value) for tag in logged.tags] == [("mlflow.data.context", "training")]


def test_a_folder_is_one_data_set_of_all_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, rows in (("a/1", 2), ("b/2", 3)):
        file = Path("generations", f"{name}.jsonl")
        file.parent.mkdir(parents=True)
        file.write_text('{"score": 1.0}\n' * rows)
    Path("generations/counts.json").write_text("{}\n")
    dataset = dataset_input(DataSource("generations", "evaluation")).dataset
    assert (dataset.name, json.loads(dataset.profile)) == ("generations", {"num_rows": 5})


def test_types_are_named_in_mlflows_words(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"a": true, "b": null, "c": [1, 2], "d": {"e": "x"}, "f": []}\n')
    assert columns(file) == [
        {"type": "boolean", "name": "a", "required": True},
        {"type": "string", "name": "b", "required": False},
        {"type": "array", "items": {"type": "long"}, "name": "c", "required": True},
        {"type": "object", "properties": {"e": {"type": "string"}}, "name": "d", "required": True},
        {"type": "array", "items": {"type": "string"}, "name": "f", "required": True},
    ]
    file.write_text("")
    assert columns(file) == []


def test_mlflow_reads_the_schema(tmp_path: Path) -> None:
    from mlflow.types import Schema

    file = tmp_path / "rows.jsonl"
    file.write_text('{"a": "x", "c": [1, 2], "d": 0.5}\n')
    assert Schema.from_json(json.dumps(columns(file))).input_names() == ["a", "c", "d"]


def test_only_given_data_is_named() -> None:
    inputs = Inputs("samples@train", {}, {"data/prompts": "feed", "models/sft": "beef"})
    assert data_of("samples", {"split": "train"}, inputs) == [DataSource("data/prompts/train.jsonl", "sampling")]
    assert data_of("samples", {"split": "train"}, Inputs("samples@train", {}, {})) == []
    assert data_of("check", {}, inputs) == []


@pytest.mark.parametrize("stage", [name for name, entry in STAGES.items() if any(d in ROWS for d in entry["deps"])])
def test_every_stage_with_rows_has_its_data_sets(stage: str) -> None:
    """The table holds for dvc.yaml and for the files that the stages name."""
    deps = [re.sub(r"\$\{item\.(\w+)\}", r"{\1}", path) for path in STAGES[stage]["deps"]]
    source = (REPOSITORY / "tasks" / f"{SHARED.get(stage, stage)}.py").read_text("utf-8")
    assert READS[stage]
    for path in map(Path, READS[stage]):
        assert any(path.is_relative_to(folder) for folder in deps)
        if path.suffix and stage not in IN_THE_LIBRARY:
            assert path.name in source
