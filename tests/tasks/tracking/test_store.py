"""The store of runs in a folder that is moved or copied."""

import shutil
import sqlite3
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tasks.tracking.store import prepare_store
from tasks.tracking.views import TAG, experiment_tags

if TYPE_CHECKING:
    from mlflow.tracking.client import MlflowClient

NAME = "a folder, 50 % \u00e4"  # what an address has to quote


def add_run(root: Path, text: str) -> str:
    """A run with an artifact and a registered model; returns its id."""
    from mlflow.exceptions import MlflowException

    client, experiment = prepare_store(root)
    run: str = client.create_run(experiment).info.run_id
    client.log_text(run, text, "notes/note.txt")
    model = client.create_logged_model(experiment, "rlhf-1", run)
    client.finalize_logged_model(model.model_id, "READY")
    with suppress(MlflowException):  # of the second run of a folder
        client.create_registered_model("tiny-rlhf")
    client.create_model_version("tiny-rlhf", model.artifact_location, run, model_id=model.model_id)
    client.set_terminated(run)
    return run


def note(client: "MlflowClient", run: str, folder: Path) -> str:
    folder.mkdir()
    assert [file.path for file in client.list_artifacts(run, "notes")] == ["notes/note.txt"]
    return Path(client.download_artifacts(run, "notes/note.txt", str(folder))).read_text()


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder with a run of its own, and the run's id; it takes seconds to make."""
    root = tmp_path_factory.mktemp("made") / NAME
    root.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.chdir(root.parent)
        return root, add_run(root, "of the first")


@pytest.fixture
def copy(made: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder; the process stands somewhere else."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(made[0], tmp_path / "elsewhere" / "copy"))


def test_a_copy_has_its_runs_artifacts_and_leaves_the_original_alone(
    made: tuple[Path, str], copy: Path, tmp_path: Path
) -> None:
    root, run = made
    before = content(root)
    (copy / "mlartifacts" / run / "artifacts" / "notes" / "note.txt").write_text("of the copy")
    client, _ = prepare_store(copy)
    assert note(client, run, tmp_path / "down") == "of the copy"
    later = add_run(copy, "later")
    assert (copy / "mlartifacts" / later / "artifacts" / "notes" / "note.txt").read_text() == "later"
    assert content(root) == before


def test_a_moved_folder_has_its_runs_artifacts(made: tuple[Path, str], copy: Path, tmp_path: Path) -> None:
    runs = [made[1], add_run(copy, "second")]
    moved = copy.rename(tmp_path / "moved")
    runs.append(add_run(moved, "third"))
    client, _ = prepare_store(moved)
    assert [note(client, run, tmp_path / run) for run in runs] == ["of the first", "second", "third"]
    assert not copy.exists() and all((moved / "mlartifacts" / run).is_dir() for run in runs)
    assert "/elsewhere/" not in dump(moved)


def test_artifacts_that_stayed_behind_are_still_found(made: tuple[Path, str], copy: Path, tmp_path: Path) -> None:
    """As of runs that were made in a copy before copies wrote into themselves."""
    root, run = made
    shutil.rmtree(copy / "mlartifacts")
    client, _ = prepare_store(copy)
    assert note(client, run, tmp_path / "down") == "of the first"
    later = add_run(copy, "later")
    assert (copy / "mlartifacts" / later).is_dir() and not (root / "mlartifacts" / later).exists()


def test_places_that_were_chosen_by_others_stay(copy: Path, tmp_path: Path) -> None:
    client, _ = prepare_store(copy)
    other = client.create_experiment("other", "s3://bucket/mlartifacts")
    run = client.create_run(other).info
    moved = copy.rename(tmp_path / "moved")
    client, _ = prepare_store(moved)
    assert client.get_experiment(other).artifact_location == "s3://bucket/mlartifacts"
    assert client.get_run(run.run_id).info.artifact_uri == run.artifact_uri


def test_a_store_at_an_address_of_its_own_is_left_alone(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = dump(copy)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{copy}/mlflow.db")
    prepare_store(copy)
    assert dump(copy) == before


def test_a_store_of_before_gets_the_view_and_keeps_what_was_changed(copy: Path) -> None:
    client, experiment = prepare_store(copy)
    client.set_experiment_tag(experiment, TAG, "of someone")
    with sqlite3.connect(copy / "mlflow.db") as store:
        store.execute("DELETE FROM experiment_tags WHERE key = 'mlflow.note.content'")
    store.close()
    client, _ = prepare_store(copy)
    tags = client.get_experiment(experiment).tags
    assert tags[TAG] == "of someone" and tags["mlflow.note.content"] == experiment_tags()["mlflow.note.content"]


def dump(root: Path) -> str:
    store = sqlite3.connect(root / "mlflow.db")
    text = "\n".join(store.iterdump())
    store.close()
    return text
