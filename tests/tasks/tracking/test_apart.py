import io
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from rarlhf.config.params import Params
from tasks.inputs import read_inputs
from tasks.tracking import apart, worker
from tasks.tracking.apart import StageTracker
from tasks.tracking.forks import tracking_process
from tasks.tracking.models import ModelCopy
from tasks.tracking.parent import PIPELINE, told_stages
from tasks.tracking.record import RunRecord, stage_record
from tasks.tracking.workers import ADDRESS, Fork, OwnProcess

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking.client import MlflowClient


def client(root: Path) -> "MlflowClient":
    from mlflow.tracking.client import MlflowClient

    return MlflowClient(f"sqlite:///{root}/mlflow.db")


def only_run(root: Path) -> "Run":
    experiment = client(root).get_experiment_by_name("rarlhf")
    assert experiment is not None
    (run,) = client(root).search_runs([experiment.experiment_id])
    return run


def own_process(tracker: StageTracker) -> "subprocess.Popen[str]":
    assert isinstance(tracker._worker, OwnProcess)
    return tracker._worker.process


@pytest.fixture(autouse=True)
def _tables(workspace: Path, mlflow_store: Path) -> None:
    """A store with MLflow's tables, which the processes of these tests need not make."""
    with sqlite3.connect(workspace / "mlflow.db") as store, sqlite3.connect(mlflow_store) as tables:
        store.executescript(";".join(tables.iterdump()))
    store.close()
    tables.close()


@pytest.fixture
def record(params: Params) -> RunRecord:
    return stage_record("toy", {"seed": 2}, params, read_inputs("toy", {"seed": 2}, params))


def test_what_a_stage_tells_arrives(
    workspace: Path, params: Params, record: RunRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.figure import Figure

    folder = workspace / "repro-1"
    folder.mkdir()
    (folder / "run").write_text("abc")
    monkeypatch.setenv(PIPELINE, str(folder))
    begun = time.time()
    tracker = StageTracker(record, workspace)
    assert told_stages(folder)["toy@2"]["state"] == "RUNNING"
    tracker.metrics({"loss": 0.5, "nothing": float("nan")}, 3)
    tracker.params({"more": "1"})
    tracker.table([{"prompt": "a line\nor two", "score": 1.5, "kept": True}], "samples.json")
    tracker.figure(Figure, "figures/none.png")
    tracker.artifact(Path("data/raw"), "inputs")
    (workspace / "data" / "raw" / "train.jsonl").unlink()  # its copy is sent
    tracker.child("below", {"stage": "results"}, {"mean": 2.0})
    tracker.close("FINISHED")
    tracker.metrics({"late": 1.0})
    runs = {
        str(run.info.run_name): run
        for run in client(workspace).search_runs([client(workspace).get_experiment_by_name("rarlhf").experiment_id])  # type: ignore[union-attr]
    }
    run = runs[record.name]
    assert runs["below"].data.metrics == {"mean": 2.0}
    assert run.info.status == "FINISHED" and run.data.params["more"] == "1"
    assert run.data.params["risk.alpha"] == str(params.risk.alpha)
    assert (run.data.metrics["loss"], run.data.tags["pid"]) == (0.5, str(os.getpid()))
    assert run.data.metrics["nothing"] != run.data.metrics["nothing"] and "late" not in run.data.metrics
    assert run.data.tags["mlflow.parentRunId"] == "abc"
    assert begun * 1000 - 1 <= run.info.start_time < (begun + 1) * 1000  # not when MLflow was there
    (point,) = client(workspace).get_metric_history(run.info.run_id, "loss")
    assert point.step == 3 and point.timestamp < (begun + 1) * 1000
    artifacts = Path(run.info.artifact_uri.removeprefix("file://"))
    assert (artifacts / "figures" / "none.png").is_file() and (artifacts / "inputs/raw/train.jsonl").is_file()
    assert json.loads((artifacts / "samples.json").read_text())["data"] == [["a line\nor two", 1.5, True]]
    told = told_stages(folder)["toy@2"]
    assert (told["state"], told["run_id"]) == ("FINISHED", run.info.run_id) and told["seconds"] > 0


KILLED = """
import os, signal, sys
from pathlib import Path
from tasks.tracking.apart import StageTracker
from tasks.tracking.forks import tracking_process
from tasks.tracking.record import RunRecord
tracker = StageTracker(RunRecord("toy", {}, stage="toy"), Path.cwd())
tracker.metrics({"loss": 1.0})
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_run_of_a_killed_stage_is_closed(workspace: Path) -> None:
    path = str(Path(apart.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", KILLED],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,  # ends when the tracking process has closed its end
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (-signal.SIGKILL, "")
    run = only_run(workspace)
    assert run.info.status == "KILLED" and run.data.metrics["loss"] == 1.0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_are_for_the_stage(number: int, workspace: Path, record: RunRecord) -> None:
    tracker = StageTracker(record, workspace)
    tracker.wait(60)
    own_process(tracker).send_signal(number)
    tracker.close("KILLED")
    assert only_run(workspace).info.status == "KILLED"


def test_a_lost_process_costs_one_warning(
    workspace: Path, record: RunRecord, capfd: pytest.CaptureFixture[str]
) -> None:
    tracker = StageTracker(record, workspace)
    own_process(tracker).kill()
    own_process(tracker).wait()
    for step in range(3):
        tracker.metrics({"loss": 1.0}, step)
    tracker.close("FINISHED")
    shown = capfd.readouterr().err
    assert shown.startswith("warning: MLflow tracking is not complete") and shown.count("\n") == 1


def test_a_process_that_cannot_start_costs_one_warning(
    workspace: Path, record: RunRecord, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "executable", "nowhere/python")
    tracker = StageTracker(record, workspace)
    tracker.metrics({"loss": 1.0})
    tracker.close("FINISHED")
    shown = capfd.readouterr().err
    assert "nowhere/python" in shown and shown.count("\n") == 1


def test_of_several_processes_the_first_alone_is_tracked(
    workspace: Path, record: RunRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    tracker = StageTracker(record, workspace)
    tracker.metrics({"loss": 1.0}, 1)
    tracker.close("FINISHED")
    assert client(workspace).get_experiment_by_name("rarlhf") is None


class Calls:
    """Keeps what a tracker is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda **arguments: self.told.append((name, arguments))


def test_models_and_results_keep_their_types() -> None:
    copy = ModelCopy(Path("/tmp/a"), Path("models/rlhf/1"), "tiny-rlhf", {"a": "b"}, {}, True)
    sent: list[str] = []
    tracker = StageTracker.__new__(StageTracker)
    tracker.alive = True
    tracker._worker = type("Listener", (), {"write": sent.append})  # type: ignore[assignment]
    tracker.register(copy)
    tracker.results({"preset": "tiny"}, Path("models"))  # type: ignore[typeddict-item]
    calls = Calls()
    worker.follow(calls, sent, io.StringIO())  # type: ignore[arg-type]
    assert calls.told == [
        ("register", {"copy": copy}),
        ("results", {"evaluation": {"preset": "tiny"}, "models": Path("models")}),
        ("close", {"status": "KILLED"}),  # the lines ended without it
    ]


@pytest.fixture
def forks(workspace: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a run of the pipeline whose tracking process is ready."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "run").write_text("abc")
    monkeypatch.setenv(PIPELINE, str(folder))
    with tracking_process(folder):
        ready(folder / ADDRESS)
        yield folder


def ready(address: Path) -> None:
    end = time.monotonic() + 120
    while not address.exists() and time.monotonic() < end:
        time.sleep(0.05)
    assert address.exists()


def test_forks_track_several_runs(workspace: Path, forks: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = workspace / "elsewhere"
    folder.mkdir()
    trackers = [StageTracker(RunRecord(name, {}, stage=name), workspace) for name in ("one", "two")]
    for number, tracker in enumerate(trackers):
        assert isinstance(tracker._worker, Fork)
        tracker.metrics({"loss": float(number)})
        tracker.wait(60)
    for tracker in trackers:
        tracker.close("FINISHED")
    experiment = client(workspace).get_experiment_by_name("rarlhf")
    assert experiment is not None
    runs = {run.info.run_name: run for run in client(workspace).search_runs([experiment.experiment_id])}
    assert [runs[name].data.metrics["loss"] for name in ("one", "two")] == [0.0, 1.0]
    for run in runs.values():
        assert (run.info.status, run.data.tags["pid"]) == ("FINISHED", str(os.getpid()))
        assert run.data.tags["mlflow.parentRunId"] == "abc"
    assert {line["state"] for line in told_stages(forks).values()} == {"FINISHED"}
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("forks")
def test_a_fork_closes_the_run_of_a_killed_stage(workspace: Path) -> None:
    path = str(Path(apart.__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, "-c", KILLED], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stderr) == (-signal.SIGKILL, "")
    assert only_run(workspace).info.status == "KILLED"


def test_a_run_that_is_open_outlives_the_process_that_forks(
    workspace: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path_factory.mktemp("run")
    (folder / "run").write_text("abc")
    monkeypatch.setenv(PIPELINE, str(folder))
    with tracking_process(folder):
        ready(folder / ADDRESS)
        tracker = StageTracker(RunRecord("toy", {}, stage="toy"), workspace)
    tracker.metrics({"loss": 2.0})
    tracker.close("FINISHED")
    run = only_run(workspace)
    assert (run.info.status, run.data.metrics["loss"]) == ("FINISHED", 2.0)
    later = StageTracker(RunRecord("later", {}, stage="later"), workspace)
    assert isinstance(later._worker, OwnProcess)
    later.close("FINISHED")


def test_a_folder_too_deep_for_an_address_is_no_error(
    workspace: Path, record: RunRecord, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = workspace / ("d" * 120)
    folder.mkdir()
    (folder / "run").write_text("abc")
    monkeypatch.setenv(PIPELINE, str(folder))
    with tracking_process(folder):
        pass  # waits for its end
    tracker = StageTracker(record, workspace)
    tracker.close("FINISHED")
    assert only_run(workspace).info.status == "FINISHED"
    assert capfd.readouterr().err == ""
