import json
import logging
import os
import subprocess
import sys
import time
from argparse import ArgumentTypeError
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

import flows.pipeline
from flows.pipeline import PassingTrouble, _fail, _may_pass, _prepare, _repro, _setting, rarlhf
from rarlhf.errors import UserError
from rarlhf.params import load_params


@pytest.fixture(autouse=True)
def _plain_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefect's run logger exists within runs only."""
    monkeypatch.setattr(flows.pipeline, "get_run_logger", lambda: logging.getLogger("flow"))


def test_overrides_are_put_into_params_before_the_graph_is_read(toy: Path) -> None:
    graph, params = _prepare(["good"], {"risk.alpha": 0.25}, "tiny")
    assert list(graph) == ["first", "twin@1", "good"]
    assert params.risk.alpha == load_params().risk.alpha == 0.25
    with pytest.raises(UserError, match=r"params\.yaml was edited"):
        _prepare([], {}, "tiny")


def test_a_passing_trouble_is_told_from_a_fault() -> None:
    with pytest.raises(PassingTrouble, match="sft: ERROR: failed to reproduce"):
        _fail("sft", ["...", "ERROR: failed to reproduce 'sft': failed to run: python, exited with -9"])
    with pytest.raises(PassingTrouble, match="error: download"):
        _fail("download", ["requests.ConnectionError: Connection refused", "error: download: no network"])
    with pytest.raises(RuntimeError, match="check: error: check: bad value ERROR: failed") as caught:
        _fail("check", ["error: check: bad value", "ERROR: failed to reproduce"])
    assert not isinstance(caught.value, PassingTrouble)


@pytest.mark.parametrize(("error", "again"), [(PassingTrouble("x"), True), (RuntimeError("x"), False)])
def test_only_a_passing_trouble_is_tried_again(error: Exception, again: bool) -> None:
    state: State[Any] = Failed(data=error)
    assert _may_pass(None, None, state) is again  # type: ignore[arg-type]


def living(group: int) -> list[psutil.Process]:
    """Processes of a group that still run; a dead one that nobody has asked about yet does not count."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, ProcessLookupError):
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def test_a_stopped_stage_leaves_no_process_and_no_lock(toy: Path) -> None:
    with (toy / "dvc.yaml").open("a") as stream:
        stream.write("  slow:\n    cmd: echo started; sleep 60\n")

    groups, started = [], []

    def stop_at_start() -> None:
        with _repro("slow", False) as process:
            groups.append(process.pid)
            assert process.stdout is not None
            next(line for line in process.stdout if line == "started\n")
            started.append(time.monotonic())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop_at_start()
    assert time.monotonic() - started[0] < 40  # the stage was stopped, not waited for: it sleeps 60 s
    assert not living(groups[0])
    subprocess.run([sys.executable, "-m", "dvc", "repro", "-q", "first"], check=True, timeout=60)


def test_settings_on_the_command_line() -> None:
    assert _setting("risk.alpha=0.2") == ("risk.alpha", 0.2)
    assert _setting("seeds=[1, 2]") == ("seeds", [1, 2])
    assert _setting("data.path=a=b") == ("data.path", "a=b")
    with pytest.raises(ArgumentTypeError, match="expected key=value"):
        _setting("risk.alpha")


def test_bad_wishes_fail_the_flow_in_one_line(toy: Path) -> None:
    state = rarlhf.fn(targets=["nosuch"])
    assert state.is_failed() and "no stage nosuch" in str(state.message)
    assert not Path("mlflow.db").exists()


def test_the_flows_state_tells_what_was_not_done(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    states: dict[str, State[Any]] = {"a": Completed(name="Cached"), "b": Completed()}
    monkeypatch.setattr(flows.pipeline, "_run_stages", lambda graph, force: states)
    assert rarlhf.fn().message == "2 stages, 1 of them were up to date"
    states["c"] = Failed()
    assert rarlhf.fn().message == "not done: c (Failed)"


def test_the_whole_flow_without_a_server(toy: Path) -> None:
    """A failing run stops what needs it and nothing else; the flow and plain DVC find each other's work done."""
    from mlflow.tracking.client import MlflowClient

    subprocess.run([sys.executable, "-m", "dvc", "repro", "-q", "twin@1"], check=True)
    environment = {**os.environ, "PYTHONPATH": str(Path(flows.pipeline.__file__).parents[1])}
    environment["PREFECT_API_URL"] = "http://127.0.0.1:9/api"  # nothing listens there
    done = subprocess.run(
        [sys.executable, "-m", "flows.pipeline"], env=environment, capture_output=True, text=True, check=False
    )
    shown = done.stdout + done.stderr
    assert done.returncode == 1
    assert "not done: twin@2 (Failed), last (NotReady)" in shown
    client = MlflowClient(f"sqlite:///{toy}/mlflow.db")
    experiment = client.get_experiment_by_name("rarlhf")
    assert experiment is not None
    *cached, parent = client.search_runs([experiment.experiment_id])  # newest first
    assert [run.info.run_name for run in cached] == ["twin@1 (cached)", "first (cached)"]
    assert {run.data.tags["mlflow.parentRunId"] for run in cached} == {parent.info.run_id}
    assert (parent.info.run_name, parent.info.status) == ("pipeline", "FAILED")
    assert f"parent={parent.info.run_id}" in shown
    table = json.loads(Path(client.download_artifacts(parent.info.run_id, "stages.json", str(toy))).read_text())
    assert table["columns"][:2] == ["stage", "state"]
    assert {row[0]: row[1] for row in table["data"]} == {
        "first": "Cached",
        "twin@1": "Cached",
        "twin@2": "Failed",
        "good": "Completed",
        "last": "NotReady",
    }
    assert Path("data/good.txt").read_text() == "a\n" and not Path("data/last.txt").exists()
    again = subprocess.run([sys.executable, "-m", "dvc", "repro", "good"], capture_output=True, text=True, check=True)
    assert "Running stage" not in again.stdout
