"""The store of runs in a folder that is moved or copied."""

import shutil
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tasks.tracking_store import prepare_store

if TYPE_CHECKING:
    from mlflow.tracking.client import MlflowClient

NAME = "a folder, 50 % \u00e4"  # what an address has to quote


def add_run(root: Path, text: str) -> str:
    """A run with an artifact; returns its id."""
    client, experiment = prepare_store(root)
    run: str = client.create_run(experiment).info.run_id
    client.log_text(run, text, "notes/note.txt")
    client.set_terminated(run)
    return run


def note(client: "MlflowClient", run: str, folder: Path) -> str:
    folder.mkdir()
    assert [file.path for file in client.list_artifacts(run, "notes")] == ["notes/note.txt"]
    return Path(client.download_artifacts(run, "notes/note.txt", str(folder))).read_text()


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, str]:
    """A folder with a run of its own, and the run's id."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    root = tmp_path / NAME
    root.mkdir()
    return root, add_run(root, "of the first")


def test_a_copy_has_its_runs_artifacts_and_leaves_the_original_alone(first: tuple[Path, str], tmp_path: Path) -> None:
    root, run = first
    copy = tmp_path / "elsewhere" / "copy"
    shutil.copytree(root, copy)
    before = content(root)
    (copy / "mlartifacts" / run / "artifacts" / "notes" / "note.txt").write_text("of the copy")
    client, _ = prepare_store(copy)
    assert note(client, run, tmp_path / "down") == "of the copy"
    later = add_run(copy, "later")
    assert (copy / "mlartifacts" / later / "artifacts" / "notes" / "note.txt").read_text() == "later"
    assert content(root) == before
    client, _ = prepare_store(root)
    assert note(client, run, tmp_path / "again") == "of the first"


def test_a_moved_folder_has_its_runs_artifacts(first: tuple[Path, str], tmp_path: Path) -> None:
    root, run = first
    moved = root.rename(tmp_path / "moved")
    later = add_run(moved, "later")
    client, _ = prepare_store(moved)
    assert [note(client, each, tmp_path / each) for each in (run, later)] == ["of the first", "later"]
    assert not root.exists()
    store = sqlite3.connect(moved / "mlflow.db")
    assert NAME not in "".join(store.iterdump()) and "50%20%25" not in "".join(store.iterdump())
    store.close()


def test_artifacts_that_stayed_behind_are_still_found(first: tuple[Path, str], tmp_path: Path) -> None:
    """As of runs that were made in a copy before copies wrote into themselves."""
    root, run = first
    copy = tmp_path / "copy"
    shutil.copytree(root, copy)
    shutil.rmtree(copy / "mlartifacts")
    client, _ = prepare_store(copy)
    assert note(client, run, tmp_path / "down") == "of the first"
    later = add_run(copy, "later")
    assert (copy / "mlartifacts" / later).is_dir() and not (root / "mlartifacts" / later).exists()


def test_places_that_were_chosen_by_others_stay(first: tuple[Path, str], tmp_path: Path) -> None:
    root, _ = first
    client, _ = prepare_store(root)
    other = client.create_experiment("other", "s3://bucket/mlartifacts")
    run = client.create_run(other).info
    prepare_store(root.rename(tmp_path / "moved"))
    client, _ = prepare_store(tmp_path / "moved")
    assert client.get_experiment(other).artifact_location == "s3://bucket/mlartifacts"
    assert client.get_run(run.run_id).info.artifact_uri == run.artifact_uri


def test_a_store_at_an_address_of_its_own_is_left_alone(
    first: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, run = first
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root}/mlflow.db")
    client, _ = prepare_store(tmp_path)
    assert NAME in client.get_run(run).info.artifact_uri or "50%20%25" in client.get_run(run).info.artifact_uri
