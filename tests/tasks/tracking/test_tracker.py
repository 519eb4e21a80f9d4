import json
import math
import os
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import tasks.tracking.tracker
from rarlhf.config.params import Params
from tasks.inputs import digest, params_hash, read_inputs
from tasks.tracking.parent import PIPELINE, publish_parent
from tasks.tracking.record import RunRecord, stage_record
from tasks.tracking.tracker import Tracker

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking.client import MlflowClient


def client(root: Path) -> "MlflowClient":
    from mlflow.tracking.client import MlflowClient

    return MlflowClient(f"sqlite:///{root}/mlflow.db")


def stored(root: Path, run_id: str) -> "Run":
    return client(root).get_run(run_id)


@pytest.fixture
def record(params: Params, monkeypatch: pytest.MonkeyPatch) -> RunRecord:
    monkeypatch.setattr("tasks.tracking.datasets.READS", {"toy": {"data/raw/train.jsonl": "training"}})
    return stage_record("toy", {"seed": 2, "method": "sft"}, params, read_inputs("toy", {"seed": 2}, params))


def test_a_run_has_its_own_params_tags_and_data(
    workspace: Path, params: Params, record: RunRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = Tracker(record, workspace)
    tracker.close("FINISHED")
    run = stored(workspace, tracker.run_id)
    assert (run.info.run_name, run.info.status) == (f"tiny sft 2 {params_hash(params)[:6]}", "FINISHED")
    assert run.data.params["risk.alpha"] == str(params.risk.alpha)
    assert run.data.params["preset"] == "tiny" and "kl.coef" not in run.data.params
    tags = run.data.tags
    assert (tags["stage"], tags["preset"], tags["method"], tags["seed"]) == ("toy", "tiny", "sft", "2")
    assert len(tags["inputs_hash"]) == 64
    assert tags["host"] == socket.gethostname() and tags["pid"] == str(os.getpid())
    assert "mlflow.parentRunId" not in tags and "git_commit" not in tags
    (entry,) = run.inputs.dataset_inputs
    assert (entry.dataset.name, entry.dataset.digest) == ("raw/train", digest(Path("data/raw/train.jsonl"))[:16])
    assert [(tag.key, tag.value) for tag in entry.tags] == [("mlflow.data.context", "training")]
    artifacts = Path(run.info.artifact_uri.removeprefix("file://"))
    assert artifacts.is_relative_to(workspace / "mlartifacts")


def test_of_several_processes_the_first_alone_is_tracked(
    workspace: Path, record: RunRecord, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    tracker = Tracker(record, workspace)
    tracker.metrics({"loss": 1.0}, 1)
    tracker.close("FINISHED")
    assert tracker.run_id == "" and not (workspace / "mlflow.db").exists()
    assert capsys.readouterr().err == ""


def test_stages_are_nested_under_the_pipelines_run(
    params: Params, record: RunRecord, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = workspace / "repro-1"
    folder.mkdir()
    monkeypatch.setenv(PIPELINE, str(folder))
    monkeypatch.setenv("DVC_STAGE", "toy@2")
    record = stage_record("toy", {"seed": 2}, params, read_inputs("toy", {"seed": 2}, params))
    assert (record.tags["pipeline"], record.tags["dvc_stage"]) == ("repro-1", "toy@2")
    tracker = Tracker(record, workspace)
    time.sleep(0.3)  # the id comes later than the stage
    publish_parent("abc", folder)
    tracker.close("FINISHED")
    assert stored(workspace, tracker.run_id).data.tags["mlflow.parentRunId"] == "abc"


def test_numbers_figures_tables_and_files_arrive(workspace: Path, record: RunRecord) -> None:
    from matplotlib.figure import Figure

    tracker = Tracker(record, workspace)
    for step in range(3):
        tracker.metrics({"risk/cvar": step / 2, "kl": math.nan}, step)
    tracker.wait(60)
    assert stored(workspace, tracker.run_id).data.metrics == {}  # sent together, later
    figure = Figure()
    figure.subplots().plot([1, 2])
    tracker.figure(lambda: figure, "figures/line.png")
    tracker.table([{"stage": "a", "state": "Cached"}, {"stage": "b", "state": "Failed"}], "stages.json")
    tracker.artifact(Path("in.txt"))
    tracker.artifact(Path("data/raw"), "inputs")
    tracker.tags({"note": "x"})
    tracker.close("FAILED")
    run = stored(workspace, tracker.run_id)
    history = client(workspace).get_metric_history(tracker.run_id, "risk/cvar")
    assert [(point.step, point.value) for point in history] == [(0, 0.0), (1, 0.5), (2, 1.0)]
    assert math.isnan(run.data.metrics["kl"])
    assert (run.info.status, run.data.tags["note"]) == ("FAILED", "x")
    artifacts = Path(run.info.artifact_uri.removeprefix("file://"))
    assert (artifacts / "figures" / "line.png").read_bytes()[1:4] == b"PNG"
    assert json.loads((artifacts / "stages.json").read_text())["data"] == [["a", "Cached"], ["b", "Failed"]]
    assert (artifacts / "in.txt").read_text() == "in\n"
    assert (artifacts / "inputs" / "raw" / "train.jsonl").is_file()


def test_many_numbers_are_sent_on_the_way(workspace: Path, record: RunRecord) -> None:
    tracker = Tracker(record, workspace)
    for step in range(tasks.tracking.tracker.FLUSH_METRICS):
        tracker.metrics({"loss": 1.0}, step)
    tracker.wait(60)
    assert len(client(workspace).get_metric_history(tracker.run_id, "loss")) == tasks.tracking.tracker.FLUSH_METRICS
    tracker.close("FINISHED")


def test_the_store_lets_readers_and_writers_alone(workspace: Path, record: RunRecord) -> None:
    Tracker(record, workspace).close("FINISHED")
    store = sqlite3.connect("mlflow.db")
    assert store.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    store.close()


def test_a_run_of_a_living_process_is_left_open(workspace: Path, record: RunRecord) -> None:
    first = Tracker(record, workspace)
    first.wait(60)
    Tracker(record, workspace).close("FINISHED")
    assert stored(workspace, first.run_id).info.status == "RUNNING"
    client(workspace).set_tag(first.run_id, "process_start", "1.0")  # the process number was given again
    Tracker(record, workspace).close("FINISHED")
    assert stored(workspace, first.run_id).info.status == "KILLED"
    client(workspace).set_tag(first.run_id, "pid", str(2**22 + 1))  # above Linux's largest number
    client(workspace).update_run(first.run_id, "RUNNING")
    Tracker(record, workspace).close("FINISHED")
    assert stored(workspace, first.run_id).info.status == "KILLED"


def test_commit_and_dirty_state_are_recorded(workspace: Path, record: RunRecord) -> None:
    def git(*words: str) -> str:
        command = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    git("init", "-q")
    written = (Path("dvc.lock"), Path("metrics/evaluate.json"))  # by runs
    written[1].parent.mkdir()
    for path in written:
        path.write_text("a")
    git("add", "in.txt", *map(str, written))
    git("commit", "-qm", "x")
    for path in written:
        path.write_text("b")
    clean = Tracker(record, workspace)
    clean.wait(60)
    Path("in.txt").write_text("changed")
    dirty = Tracker(record, workspace)
    dirty.wait(60)
    states = [stored(workspace, tracker.run_id).data.tags["git_dirty"] for tracker in (clean, dirty)]
    assert states == ["false", "true"]
    assert stored(workspace, clean.run_id).data.tags["git_commit"] == git("rev-parse", "HEAD")


def test_a_server_that_is_down_costs_one_warning(
    workspace: Path, record: RunRecord, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    start = time.monotonic()
    tracker = Tracker(record, workspace)
    tracker.metrics({"loss": 1.0})
    tracker.close("FINISHED")
    assert time.monotonic() - start < 20
    captured = capsys.readouterr()
    assert captured.err.startswith("warning: MLflow tracking fails and is tried again; nothing else is affected: ")
    assert captured.err.count("\n") == 1 and captured.out == ""


def test_what_cannot_be_kept_is_left_out_with_one_warning(
    workspace: Path, record: RunRecord, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker = Tracker(record, workspace)
    tracker.artifact(Path("nowhere"))
    tracker.params({"ppo.lr": "another"})  # MLflow refuses to change a parameter
    tracker.metrics({"loss": 1.0})
    tracker.close("FINISHED")
    shown = capsys.readouterr().err
    assert shown.startswith(
        "warning: MLflow tracking is not complete; nothing else is affected: [Errno 2] No such file"
    )
    assert shown.count("\n") == 1
    run = stored(workspace, tracker.run_id)
    assert (run.info.status, run.data.metrics["loss"]) == ("FINISHED", 1.0)


def test_what_a_stage_uses_of_the_machine_is_logged(
    workspace: Path, record: RunRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = []
    for wanted in ("true", "false"):
        monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", wanted)
        tracker = Tracker(record, workspace)
        tracker.wait(60)
        tracker.close("FINISHED")  # after less than a second
        names.append(set(stored(workspace, tracker.run_id).data.metrics))
    assert "system/cpu_utilization_percentage" in names[0] and all(name.startswith("system/") for name in names[0])
    assert names[1] == set()


def test_a_store_that_stops_answering_holds_up_no_stage(
    workspace: Path, record: RunRecord, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """MLflow's watch on the machine waits for the store without a limit; the stage must not."""
    forever = threading.Event()
    monkeypatch.setattr(tasks.tracking.tracker, "PATIENCE_FILE", 0.5)
    monkeypatch.setattr(
        "mlflow.system_metrics.system_metrics_monitor.SystemMetricsMonitor.finish", lambda _self: forever.wait()
    )
    tracker = Tracker(record, workspace)
    tracker.wait(60)
    start = time.monotonic()
    tracker.close("FINISHED")
    assert time.monotonic() - start < 5
    assert capsys.readouterr().err.endswith("no answer in 0 s\n")
    forever.set()
    tracker._sender._thread.join(10)


OPEN = """
import sys
from pathlib import Path
from tasks.tracking.record import RunRecord
from tasks.tracking.tracker import Tracker
tracker = Tracker(RunRecord(sys.argv[1], {}), Path.cwd())
tracker.metrics({"loss": 1.0})
tracker.close("FINISHED")
"""


@pytest.mark.slow
def test_processes_that_open_a_fresh_store_at_once_all_get_in(workspace: Path) -> None:
    """Without the lock one of two crashed each time."""
    path = str(Path(tasks.tracking.tracker.__file__).parents[2])
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", OPEN, name],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
        )
        for name in ("a", "b", "c")
    ]
    assert [process.communicate(timeout=120)[1] for process in processes] == [""] * 3
    experiment = client(workspace).get_experiment_by_name("rarlhf")
    assert experiment is not None
    runs = client(workspace).search_runs([experiment.experiment_id])
    assert sorted(str(run.info.run_name) for run in runs) == ["a", "b", "c"]


def test_a_figure_that_cannot_be_drawn_stops_nothing(
    workspace: Path, record: RunRecord, capsys: pytest.CaptureFixture[str]
) -> None:
    def draw() -> None:
        raise KeyError("a method without a colour")

    tracker = Tracker(record, workspace)
    tracker.figure(draw, "training.png")
    tracker.figure(lambda: None, "nothing.png")
    tracker.close("FINISHED")
    assert "not complete; nothing else is affected: 'a method without a colour'" in capsys.readouterr().err
