"""Models in MLflow's registry, and how they are loaded from it."""

import json
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import tasks.tracking.models
from rarlhf.config.errors import UserError
from rarlhf.config.params import Params
from tasks.inputs import digest
from tasks.tracking.loading import _load_pyfunc, _weights
from tasks.tracking.models import ModelCopy, alias_of, register, registered_name, version_of
from tasks.tracking.results import log_result, model_results, rounded
from tasks.tracking.store import prepare_store

if TYPE_CHECKING:
    from mlflow.tracking.client import MlflowClient

TAGS = {"preset": "tiny", "method": "rlhf", "seed": "1", "stage": "ppo"}
FOLDER = Path("models/rlhf/1")
PROMPT = "we liked the"


@pytest.fixture
def store(workspace: Path) -> "tuple[MlflowClient, str]":
    """MLflow's client and the experiment; a model lies in the workspace."""
    FOLDER.mkdir(parents=True)
    (FOLDER / "model.safetensors").write_bytes(b"12345")
    Path("data/prompts").mkdir()
    Path("data/prompts/test.jsonl").write_text(json.dumps({"prompt": PROMPT}) + "\n")
    return prepare_store(workspace)


def trained(store: "tuple[MlflowClient, str]", params: Params, place: Path, mine: bool = True) -> str:
    """Registers the model in FOLDER as made by a new run; returns the run's id."""
    client, experiment = store
    run: str = client.create_run(experiment).info.run_id
    place.mkdir()
    register(client, run, experiment, TAGS, ModelCopy.of(FOLDER, params, place / "model", mine))
    return run


def versions(client: "MlflowClient") -> list[Any]:
    return list(client.search_model_versions("name = 'tiny-rlhf'"))


def test_names_and_aliases() -> None:
    assert (registered_name("tiny", FOLDER), alias_of(FOLDER)) == ("tiny-rlhf", "seed-1")
    assert (registered_name("tiny", Path("models/sft")), alias_of(Path("models/sft"))) == ("tiny-sft", "current")


def test_equal_weights_are_one_version(store: "tuple[MlflowClient, str]", params: Params, tmp_path: Path) -> None:
    client, _ = store
    first, second = trained(store, params, tmp_path / "a"), trained(store, params, tmp_path / "b")
    (version,) = versions(client)
    assert version.run_id == first and version.tags["model_sha256"] == digest(FOLDER)
    assert (version.tags["model_path"], version.tags["model_bytes"]) == ("models/rlhf/1", "5")
    made = [client.get_run(run).outputs.model_outputs[0].model_id for run in (first, second)]
    assert made[0] == made[1] == version.tags["model_id"]
    assert version.description.endswith(f"(#/experiments/{store[1]}/models/{made[0]})")
    (FOLDER / "model.safetensors").write_bytes(b"54321")
    trained(store, params, tmp_path / "c", mine=False)  # as in DVC's temporary copy
    assert [one.version for one in versions(client)] == [2, 1]
    assert client.get_model_version_by_alias("tiny-rlhf", "seed-1").version == 1
    trained(store, params, tmp_path / "d")
    assert client.get_model_version_by_alias("tiny-rlhf", "seed-1").version == 2 and len(versions(client)) == 2
    assert not any((tmp_path / name).exists() for name in "abcd")  # the copies are deleted


def test_a_model_of_another_folder_is_registered_there(
    workspace: Path, params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mlflow_store: Path
) -> None:
    """As of an experiment in DVC's temporary copy: the store is not in the current folder."""
    root, place = tmp_path / "root", tmp_path / "a"
    root.mkdir()
    place.mkdir()
    shutil.copy(mlflow_store, root / "mlflow.db")
    FOLDER.mkdir(parents=True)
    client, experiment = prepare_store(root)
    run = client.create_run(experiment).info.run_id
    register(client, run, experiment, TAGS, ModelCopy.of(FOLDER, params, place / "model", False))
    (version,) = versions(client)
    assert version.source.startswith(f"file://{root}/mlartifacts/") and not Path("mlflow.db").exists()


def test_a_model_has_its_signature_example_and_params(
    store: "tuple[MlflowClient, str]", params: Params, tmp_path: Path
) -> None:
    from mlflow.models import Model

    client, _ = store
    run = trained(store, params, tmp_path / "a")
    model = client.get_logged_model(client.get_run(run).outputs.model_outputs[0].model_id)
    assert (model.name, model.source_run_id, str(model.status)) == ("rlhf-1", run, "READY")
    assert model.params["risk.measure"] == "none" and "kl.coef" not in model.params
    assert json.loads(model.tags["mlflow.modelVersions"]) == [{"name": "tiny-rlhf", "version": 1}]
    place = Path(model.artifact_location.removeprefix("file://"))
    found = Model.load(str(place))
    assert found.signature.inputs.input_names() == ["prompt"]
    assert found.signature.outputs.input_names() == ["continuation"]
    options = {option.name: option.default for option in found.signature.params}
    assert options == {"max_new_tokens": params.ppo.max_new_tokens, "temperature": params.ppo.temperature, "seed": 1}
    assert found.load_input_example(str(place)).to_dict("list") == {"prompt": [PROMPT]}
    assert (place / "weights" / "model.safetensors").read_bytes() == b"12345"
    reference = json.loads((place / "model.json").read_text())
    assert (reference["path"], reference["bytes"]) == ("models/rlhf/1", 5)


def test_large_weights_stay_where_they_are(
    store: "tuple[MlflowClient, str]", params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks.tracking.models, "COPIED_BYTES", 4)
    ModelCopy.of(FOLDER, params, tmp_path / "copy", True)
    assert sorted(path.name for path in (tmp_path / "copy").iterdir()) == ["model.json"]
    reference = json.loads((tmp_path / "copy" / "model.json").read_text())
    assert _weights(tmp_path / "copy", reference) == FOLDER
    (FOLDER / "model.safetensors").write_bytes(b"54321")
    with pytest.raises(UserError, match="models/rlhf/1 holds other weights than this version: check out"):
        _weights(tmp_path / "copy", reference)
    (FOLDER / "model.safetensors").unlink()
    FOLDER.rmdir()
    with pytest.raises(UserError, match="models/rlhf/1 is missing here: go to the repository's root"):
        _weights(tmp_path / "copy", reference)


@pytest.mark.filterwarnings("ignore:.*Any type hint is inferred:UserWarning")  # of MLflow's own modules, at import
def test_the_pages_code_loads_a_version(
    workspace: Path, params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With stand-ins for the opened model and what it writes."""
    import mlflow

    from rarlhf.decoding import writing

    def write(_model: object, prompts: list[str], choices: Any) -> Any:
        return [writing.Written(0, 0, f"{prompts[0]} {choices.seed}", 1, True)]

    monkeypatch.setattr(writing, "open_model", lambda *_: None)
    monkeypatch.setattr(writing, "write", write)
    folder, place = Path("models/ra_rlhf/1"), tmp_path / "a"
    folder.mkdir(parents=True)
    place.mkdir()
    client, experiment = prepare_store(workspace)
    run = client.create_run(experiment).info.run_id
    register(client, run, experiment, TAGS, ModelCopy.of(folder, params, place / "model", True))
    page = (Path(__file__).parents[3] / "docs" / "tracking.md").read_text("utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    try:
        exec(compile(block, "docs/tracking.md", "exec"), {})  # noqa: S102, the page is ours
    finally:
        mlflow.set_tracking_uri(None)
    assert capsys.readouterr().out == "['we regret the quick story and 7']\n"


def test_a_scorer_is_described_as_one(store: "tuple[MlflowClient, str]", params: Params, tmp_path: Path) -> None:
    from mlflow.models import Model

    client, experiment = store
    folder = Path("models/reward")
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (tmp_path / "a").mkdir()
    run = client.create_run(experiment).info.run_id
    register(client, run, experiment, TAGS, ModelCopy.of(folder, params, tmp_path / "a" / "model", True))
    model = client.get_logged_model(client.get_run(run).outputs.model_outputs[0].model_id)
    place = Path(model.artifact_location.removeprefix("file://"))
    signature = Model.load(str(place)).signature
    assert (signature.inputs.input_names(), signature.outputs.input_names()) == (["text"], ["score"])
    assert signature.params is None and model.params == {} and model.model_type == "reward"
    assert json.loads((place / "model.json").read_text())["scorer"]["params"]["sign"] == params.reward.sign


def test_results_are_logged_once(store: "tuple[MlflowClient, str]", params: Params, tmp_path: Path) -> None:
    client, _ = store
    run = trained(store, params, tmp_path / "a")
    values = {"dist_1": 0.25, "reward_mean": 1.234567, "kl_sft": 0.7}
    for _ in range(2):
        log_result(client, "tiny", FOLDER, values, True)
    history = client.get_metric_history(run, "reward_mean")
    assert [point.value for point in history] == [1.2346]
    model = client.get_logged_model(client.get_run(run).outputs.model_outputs[0].model_id)
    assert {metric.key: metric.value for metric in model.metrics} == {
        "reward_mean": 1.2346,
        "kl_sft": 0.7,
        "dist_1": 0.25,
    }
    assert {metric.dataset_name for metric in model.metrics} == {"prompts/test"}
    version = version_of(client, "tiny-rlhf", digest(FOLDER))
    assert version is not None and (version.tags["reward_mean"], version.tags["kl_sft"]) == ("1.23", "0.70")
    log_result(client, "tiny", FOLDER, {"reward_mean": 2.0}, True)  # as after another evaluation
    assert client.get_run(run).data.metrics["reward_mean"] == 2.0
    log_result(client, "tiny", Path("models/rlhf/9"), values, True)  # nothing is there
    (FOLDER / "model.safetensors").write_bytes(b"of no version")
    log_result(client, "tiny", FOLDER, {"reward_mean": 9.0}, True)
    assert client.get_run(run).data.metrics["reward_mean"] == 2.0


def test_each_model_has_its_seeds_numbers(tmp_path: Path) -> None:
    models = tmp_path / "models"
    (models / "sft").mkdir(parents=True)
    (models / "sft" / "config.json").write_text("{}")
    spread = {"mean": 1.5, "per_seed": [1.0, 2.0]}
    evaluation: Any = {"seeds": [3, 4], "methods": {"sft": {"kl_sft": spread}, "rlhf": {"kl_sft": spread}}}
    assert dict(model_results(evaluation, models)) == {
        models / "sft": {"kl_sft": 1.5},
        models / "rlhf" / "3": {"kl_sft": 1.0},
        models / "rlhf" / "4": {"kl_sft": 2.0},
    }
    assert rounded({"a": 0.123456}) == {"a": 0.1235}


def test_a_version_writes_and_another_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, params: Params) -> None:
    """What is loaded, without weights: the opened model and the scorer are stand-ins."""
    import pandas
    import torch

    from rarlhf.decoding import writing
    from rarlhf.rewards import scorers

    (tmp_path / "weights").mkdir()
    opened: list[object] = []
    monkeypatch.setattr(writing, "open_model", lambda folder, _device: opened.append(folder))

    def write(_model: object, prompts: list[str], choices: Any) -> Any:
        assert (choices.samples, choices.max_new_tokens, choices.temperature, choices.seed) == (1, 3, 1.0, 7)
        return [writing.Written(number, 0, prompt.upper(), 1, True) for number, prompt in enumerate(prompts)]

    monkeypatch.setattr(writing, "write", write)
    draw = {"max_new_tokens": 24, "temperature": 1.0, "seed": 1}
    (tmp_path / "model.json").write_text(json.dumps({"draw": draw}))
    policy = _load_pyfunc(str(tmp_path))
    given = pandas.DataFrame({"prompt": ["a", "b"]})
    assert policy.predict(given, {"seed": 7, "max_new_tokens": 3}) == ["A", "B"] and opened == [tmp_path / "weights"]
    monkeypatch.setattr(scorers, "load_reward_model", lambda *_: lambda texts: torch.arange(len(texts)))
    (tmp_path / "model.json").write_text(
        json.dumps({"scorer": {"section": "reward", "params": params.reward.model_dump(mode="json")}})
    )
    assert _load_pyfunc(str(tmp_path)).predict(pandas.DataFrame({"text": ["a", "b"]})) == [0.0, 1.0]
