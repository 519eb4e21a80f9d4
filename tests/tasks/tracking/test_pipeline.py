import json
import os
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rarlhf.config.params import Params
from tasks.inputs import read_inputs
from tasks.tracking.parent import PIPELINE
from tasks.tracking.pipeline import pipeline_run
from tasks.tracking.record import run_name, stage_record
from tasks.tracking.tracker import Tracker

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking.client import MlflowClient


def client(root: Path) -> "MlflowClient":
    from mlflow.tracking.client import MlflowClient

    return MlflowClient(f"sqlite:///{root}/mlflow.db")


def runs(root: Path) -> dict[str, "Run"]:
    store = client(root)
    experiment = store.get_experiment_by_name("rarlhf")
    assert experiment is not None
    return {str(run.info.run_name): run for run in store.search_runs([experiment.experiment_id])}


def run_toy(root: Path, params: Params, seed: int, status: str = "FINISHED") -> str:
    """As the stage's process does; returns the run's id."""
    tracker = Tracker(stage_record("toy", {"seed": seed}, params, read_inputs("toy", {"seed": seed}, params)), root)
    tracker.close(status)  # type: ignore[arg-type]
    return tracker.run_id


def table(root: Path, run: "Run") -> dict[str, dict[str, object]]:
    path = client(root).download_artifacts(run.info.run_id, "stages.json", str(root))
    rows = json.loads(Path(path).read_text())
    return {row[0]: dict(zip(rows["columns"], row, strict=True)) for row in rows["data"]}


def test_cached_stages_are_rows_that_name_the_run_that_made_them(workspace: Path, params: Params) -> None:
    made = run_toy(workspace, params, 1)
    run_toy(workspace, params, 2, "FAILED")
    Path("metrics").mkdir()
    Path("metrics/evaluate.json").write_text('{"methods": {"rlhf": {"reward_mean": {"mean": 0.5}}}}')
    with pipeline_run("flows.repro") as pipeline:
        pipeline.open(params)
        pipeline.stage("toy@1", "Cached", 0.5)
        pipeline.stage("toy@2", "Cached")  # the only run with these inputs failed
        pipeline.stage("lacking", "Cached")  # its input is gone: no hash, no source
        third = run_toy(workspace, params, 2)
        ran = dict(pipeline.ran())
        pipeline.stage("toy@2", ran["toy@2"])
    found = runs(workspace)
    parent = found[run_name(params, "pipeline")]
    assert parent.info.status == "FINISHED" and parent.data.params["risk.alpha"] == str(params.risk.alpha)
    assert parent.data.metrics["rlhf/reward_mean"] == 0.5 and parent.data.metrics["stages/cached"] == 2
    assert parent.data.tags["mlflow.note.content"].splitlines() == [
        "The pipeline of preset tiny, started by `flows.repro`.",
        "",
        "Stages: 2 Cached, 1 Completed. `stages.json` names the run that made each one's outputs.",
    ]
    assert sorted(found) == sorted({run_name(params, "pipeline"), *(run_name(params, "toy", seed) for seed in "12")})
    assert client(workspace).get_run(third).data.tags["mlflow.parentRunId"] == parent.info.run_id
    rows = table(workspace, parent)
    assert [rows[name]["state"] for name in ("toy@1", "toy@2", "lacking")] == ["Cached", "Completed", "Cached"]
    assert (rows["toy@1"]["run_id"], rows["toy@2"]["run_id"]) == (made, third)
    assert rows["toy@1"]["seconds"] == 0.5 and float(str(rows["toy@2"]["seconds"])) > 0


def test_a_pipeline_with_nothing_to_do_is_one_run(workspace: Path, params: Params) -> None:
    run_toy(workspace, params, 1)
    with pipeline_run("flows.repro") as pipeline:
        pipeline.open(params)
        for seed in (1, 2):
            pipeline.stage(f"toy@{seed}", "Cached")
    name = f"{run_name(params, 'pipeline')} (nothing to do)"
    assert sorted(runs(workspace)) == sorted([name, run_name(params, "toy", 1)])


@pytest.mark.parametrize(("error", "status"), [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED")])
def test_an_exception_closes_the_run(error: type[BaseException], status: str, workspace: Path, params: Params) -> None:
    with pytest.raises(error), pipeline_run("flows.repro") as pipeline:
        folder = pipeline.folder
        pipeline.open(params)
        raise error
    assert runs(workspace)[run_name(params, "pipeline")].info.status == status
    assert not folder.exists() and PIPELINE not in os.environ


def test_a_stage_killed_below_a_pipeline_is_closed_with_it(workspace: Path, params: Params) -> None:
    with pipeline_run("flows.repro") as pipeline:
        pipeline.open(params)
        dead = Tracker(stage_record("toy", {"seed": 1}, params, read_inputs("toy", {"seed": 1}, params)), workspace)
        dead.wait(60)
        client(workspace).set_tag(dead.run_id, "process_start", "1.0")  # as if its process were gone
        assert dict(pipeline.ran()) == {"toy@1": "Killed"}
    run = client(workspace).get_run(dead.run_id)
    assert run.info.status == "KILLED"
    assert table(workspace, runs(workspace)[run_name(params, "pipeline")])["toy@1"]["state"] == "Killed"


def test_nothing_is_tracked_where_nothing_was_opened(workspace: Path) -> None:
    with pipeline_run("flows.repro") as pipeline:
        pipeline.stage("toy@1", "Cached")
    assert not (workspace / "mlflow.db").exists()


def test_a_full_store_breaks_nothing(
    workspace: Path, params: Params, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_args: object, **_kwargs: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr("tasks.tracking.tracker.prepare_store", full)
    with pipeline_run("flows.repro") as pipeline:
        pipeline.open(params)
        pipeline.stage("toy@1", "Cached")
    assert capsys.readouterr().err.count("database or disk is full\n") == 1
