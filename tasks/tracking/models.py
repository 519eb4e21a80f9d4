"""Models in MLflow's registry: `PRESET-METHOD`, a version for each training that made other weights.

A version names the weights by path and SHA-256; DVC keeps their bytes. Weights of a few megabytes are copied too.
`mlflow.pyfunc` loads a version by `tasks.tracking.loading`.
"""

import json
import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ruamel.yaml import YAML

from rarlhf.config.judging import RewardParams
from rarlhf.config.methods import label_of
from rarlhf.config.params import Params
from tasks.inputs import digest

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking.client import MlflowClient

COPIED_BYTES = 10_000_000  # larger weights are named by path and SHA-256 alone
REFERENCE = "model.json"  # path, size and SHA-256 of the weights, and how the model is called
WEIGHTS = "weights"  # the copied folder
SCORERS = ("reward", "second_scorer")  # folders of the models that score; the others write
CURRENT = "current"  # alias of a model that all seeds share
EXAMPLES = ((Path("data/prompts/test.jsonl"), "prompt"), (Path("data/raw/test.jsonl"), "text"))
EXAMPLE_CHARACTERS = 200
SHA256 = "model_sha256"  # tag by which equal weights are known
MODEL = "model_id"  # tag of a version: its model
KEPT_TAGS = ("preset", "method", "seed", "git_commit")  # of a run, on its model too
VERSIONS = "mlflow.modelVersions"  # tag by which MLflow's page of a model finds its versions


@dataclass(frozen=True)
class ModelCopy:
    """What is sent of a model.

    Attributes:
        place: folder with what MLflow keeps of it.
        folder: where its weights are in the repository, as `models/rlhf/1`.
        name: in the registry.
        tags: path, size and SHA-256.
        params: what decides its risk, where it was trained for one.
        in_workspace: whether the repository itself holds it now, and not a temporary copy.
    """

    place: Path
    folder: Path
    name: str
    tags: Mapping[str, str]
    params: Mapping[str, str]
    in_workspace: bool

    @classmethod
    def of(cls, folder: Path, params: Params, place: Path, in_workspace: bool) -> "ModelCopy":
        """Copies what MLflow keeps of a model to `place`, a new folder."""
        files = {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
        size, sha256 = sum(files.values()), digest(folder)
        place.mkdir()
        reference = {"path": str(folder), "bytes": size, "sha256": sha256, "files": files, **_call(folder, params)}
        (place / REFERENCE).write_text(json.dumps(reference, indent=1), encoding="utf-8")
        if size <= COPIED_BYTES:
            shutil.copytree(folder, place / WEIGHTS)
        tags = {"model_path": str(folder), "model_bytes": str(size), SHA256: sha256}
        return cls(place, folder, registered_name(params.preset, folder), tags, _risk(folder, params), in_workspace)


def registered_name(preset: str, folder: Path) -> str:
    """Name in the registry of the model in a folder: `tiny-rlhf` for `models/rlhf/1`."""
    return f"{preset}-{folder.parts[1]}"


def alias_of(folder: Path) -> str:
    """Alias of the version that a folder holds now: `seed-1` for `models/rlhf/1`, `current` for `models/sft`."""
    return f"seed-{folder.parts[2]}" if len(folder.parts) > 2 else CURRENT


def version_of(client: "MlflowClient", name: str, sha256: str) -> "ModelVersion | None":
    """The version that has the weights of this SHA-256, if there is one."""
    found = client.search_model_versions(f"name = '{name}' and tag.{SHA256} = '{sha256}'", max_results=1)
    return found[0] if found else None


def model_of(version: "ModelVersion") -> str:
    """Id of a version's model."""
    return str(version.tags[MODEL])


def register(client: "MlflowClient", run: str, experiment: str, run_tags: Mapping[str, str], copy: ModelCopy) -> None:
    """Registers a model as made by a run: a new version, or none if the weights are those of one that is there."""
    from mlflow.entities import LoggedModelOutput

    _ensure_registered(client, copy, run_tags)
    version = version_of(client, copy.name, copy.tags[SHA256]) or _new_version(client, run, experiment, run_tags, copy)
    client.log_outputs(run, [LoggedModelOutput(model_of(version), 0)])
    if copy.in_workspace:
        client.set_registered_model_alias(copy.name, alias_of(copy.folder), version.version)
    shutil.rmtree(copy.place.parent, ignore_errors=True)


def _ensure_registered(client: "MlflowClient", copy: ModelCopy, run_tags: Mapping[str, str]) -> None:
    from mlflow.exceptions import MlflowException

    method = copy.folder.parts[1]
    many = len(copy.folder.parts) > 2
    alias, place = ("seed-N", f"{copy.folder.parent}/N") if many else (CURRENT, str(copy.folder))
    about = f"{label_of(method)} of preset {run_tags['preset']}: a version for each training that made other weights. "
    about += f"The version with alias `{alias}` is in `{place}`."
    try:
        client.create_registered_model(copy.name, {"preset": run_tags["preset"], "method": method}, about)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _new_version(
    client: "MlflowClient", run: str, experiment: str, run_tags: Mapping[str, str], copy: ModelCopy
) -> "ModelVersion":
    tags = {key: run_tags[key] for key in KEPT_TAGS if key in run_tags} | dict(copy.tags)
    kind = "reward" if _scores(copy.folder) else "policy"
    shown = "-".join(copy.folder.parts[1:])
    model = client.create_logged_model(experiment, shown, run, tags, dict(copy.params), kind)
    _describe(copy, str(model.model_id), run, str(model.artifact_location))
    client.log_model_artifacts(model.model_id, str(copy.place))
    client.finalize_logged_model(model.model_id, "READY")
    about = f"Weights: `{copy.folder}`, {int(copy.tags['model_bytes']):,} bytes, SHA-256 `{copy.tags[SHA256][:16]}...`"
    about += f". Its [test results](#/experiments/{experiment}/models/{model.model_id})"
    # Not `models:/ID`: MLflow looks that up in the store of the environment or the folder, which may be another one.
    source = str(model.artifact_location)
    version = client.create_model_version(
        copy.name, source, run, tags | {MODEL: model.model_id}, description=about, model_id=model.model_id
    )
    client.set_logged_model_tags(
        model.model_id, {VERSIONS: json.dumps([{"name": copy.name, "version": version.version}])}
    )
    return version


def _risk(folder: Path, params: Params) -> dict[str, str]:
    method = folder.parts[1]
    if method not in params.methods.risked:
        return {}
    return {f"risk.{key}": str(value) for key, value in params.risk_of(method).model_dump(mode="json").items()}


def _scores(folder: Path) -> bool:
    return folder.parts[1] in SCORERS


def _call(folder: Path, params: Params) -> dict[str, Any]:
    """How the model is called: the scorer's section of params.yaml, or how a policy's responses are drawn."""
    if _scores(folder):
        section = params.reward if folder.parts[1] == RewardParams.section else params.judge.second_scorer
        return {"scorer": {"section": section.section, "params": section.model_dump(mode="json")}}
    return {"draw": {"max_new_tokens": params.ppo.max_new_tokens, "temperature": params.ppo.temperature, "seed": 1}}


def _describe(copy: ModelCopy, model: str, run: str, location: str) -> None:
    """Writes the file `MLmodel` and the input example, as MLflow's models have them."""
    reference = json.loads((copy.place / REFERENCE).read_text(encoding="utf-8"))
    given, made = ("text", "score") if _scores(copy.folder) else ("prompt", "continuation")
    types = {"seed": "long", "max_new_tokens": "long", "temperature": "double"}
    options = [
        {"name": key, "type": types[key], "default": value, "shape": None}
        for key, value in reference.get("draw", {}).items()
    ]
    signature = {
        "inputs": json.dumps([{"type": "string", "name": given, "required": True}]),
        "outputs": json.dumps([{"type": "double" if made == "score" else "string", "name": made, "required": True}]),
        "params": json.dumps(options) if options else None,
    }
    loader = {"loader_module": "tasks.tracking.loading", "env": {}, "python_version": platform.python_version()}
    content = {
        "artifact_path": location,
        "flavors": {"python_function": loader},
        "model_id": model,
        "model_uuid": model,
        "run_id": run,
        "signature": signature,
    }
    if text := _example():
        example = {"columns": [given], "data": [[text]]}
        (copy.place / "input_example.json").write_text(json.dumps(example, ensure_ascii=False), encoding="utf-8")
        info = {"artifact_path": "input_example.json", "type": "dataframe", "pandas_orient": "split"}
        content["saved_input_example_info"] = info
    with (copy.place / "MLmodel").open("w", encoding="utf-8") as stream:
        YAML().dump(content, stream)


def _example() -> str:
    """A prompt of the test rows; empty before there are any."""
    for path, key in EXAMPLES:
        if path.is_file():
            with path.open(encoding="utf-8") as lines:
                return str(json.loads(next(lines, "{}")).get(key, ""))[:EXAMPLE_CHARACTERS]
    return ""
