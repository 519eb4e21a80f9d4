import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

import flows.pipeline
from flows.pipeline import main, rarlhf
from rarlhf.config.load import load_params
from tasks.preset import overridden, params_of
from tasks.tracking.record import run_name


@pytest.fixture(autouse=True)
def _plain_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefect's run logger exists within runs only."""
    monkeypatch.setattr(flows.pipeline, "get_run_logger", lambda: logging.getLogger("flow"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "risk.alhpa=0.2"], "risk.alhpa is not a key of params.yaml"),
        (["--set", "risk.alpha=2"], "params.yaml (left as it was): 1 problem:\n  risk.alpha = 2"),
        (["--preset", "nosuch"], "no preset nosuch"),
    ],
)
def test_wrong_values_are_refused_before_a_server_starts(
    arguments: list[str],
    message: str,
    toy: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["pipeline", *arguments])
    monkeypatch.setattr(flows.pipeline, "local_settings", None)
    assert main() == 1
    assert capsys.readouterr().err.startswith(f"error: {message}")


def test_a_flow_run_is_named_by_what_it_asks_for(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr(flows.pipeline, "flow_run", SimpleNamespace(parameters=asked))
    plain = flows.pipeline._flow_run_name()
    assert plain == run_name(load_params(), "pipeline")
    asked |= {"targets": ["sft", "plan"], "overrides": {"risk.alpha": 0.2}, "preset": None}
    params = params_of(overridden({"risk.alpha": 0.2}), "x")
    assert flows.pipeline._flow_run_name() == run_name(params, "sft", "plan") != run_name(load_params(), "sft", "plan")
    asked["overrides"] = {"nosuch.key": 1}  # the run says so in its own words
    assert flows.pipeline._flow_run_name() == "rarlhf"


def test_a_damaged_params_file_is_refused_before_a_server_starts(
    toy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("params.yaml").unlink()
    monkeypatch.setattr(sys, "argv", ["pipeline"])
    monkeypatch.setattr(flows.pipeline, "local_settings", None)
    assert main() == 1
    assert capsys.readouterr().err.startswith("error: params.yaml is missing")


def test_bad_requests_fail_the_flow_in_one_line(toy: Path) -> None:
    state = rarlhf.fn(targets=["nosuch"])
    assert state.is_failed() and "no stage nosuch" in str(state.message)
    state = rarlhf.fn(remote="nosuch")
    assert state.is_failed() and str(state.message).startswith("DVC has no remote nosuch; there is none")
    assert not Path("mlflow.db").exists()


def test_the_flows_state_tells_what_was_not_done(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    states: dict[str, State[Any]] = {"a": Completed(name="Cached"), "b": Completed()}
    monkeypatch.setattr(flows.pipeline, "run_stages", lambda *_: states)
    assert rarlhf.fn().message == "2 stages, 1 of them were up to date"
    states["c"] = Failed()
    assert rarlhf.fn().message == "not done: c (Failed)"


@pytest.mark.slow
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
    (parent,) = client.search_runs([experiment.experiment_id])
    assert (parent.info.run_name, parent.info.status) == (run_name(load_params(), "pipeline"), "FAILED")
    assert f"Flow run '{parent.info.run_name}'" in shown and "Task run 'twin seed 2' - twin@2: " in shown
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
