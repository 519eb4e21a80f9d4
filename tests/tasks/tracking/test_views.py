import json

import pytest

from tasks.tracking.views import TAG, experiment_tags, run_page, runs_page


def test_the_link_opens_the_saved_view(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    page = "http://127.0.0.1:5000/#/experiments/7"
    assert runs_page("7") == f"{page}/runs?workflowType=machine_learning&viewStateShareKey=results"
    assert run_page("7", "abc") == f"{page}/runs/abc?workflowType=machine_learning"
    assert runs_page("7", "http://127.0.0.1:9").startswith("http://127.0.0.1:9/#/experiments/7/runs?")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@host:81/")
    assert run_page("7", "abc").startswith("http://host:81/#/experiments/7/")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///other.db")
    assert runs_page("7").startswith("http://127.0.0.1:5000/#/")


def test_the_view_has_the_form_that_mlflows_page_reads() -> None:
    tags = experiment_tags()
    view = json.loads(tags[TAG])
    assert TAG.removeprefix("mlflow.sharedViewState.") in runs_page("7")
    assert isinstance(view["name"], str) and isinstance(view["createdAt"], int) and isinstance(view["state"], str)
    state = json.loads(view["state"])
    metrics = [column for column in state["selectedColumns"] if column.startswith("metrics.")]
    names = ("reward_mean", "reward_prompt_tail", "reward_cvar_10", "kl_sft")
    assert metrics == [f"metrics.`{name}`" for name in names]
    assert set(state["selectedColumns"]) <= set(state["columnOrder"]) == set(state["columnWidths"])
    assert state["orderByKey"] != "attributes.start_time"  # by which the page hides runs below others


def test_mlflow_sorts_by_the_views_order(workspace: object) -> None:
    from pathlib import Path

    from tasks.tracking.store import prepare_store

    client, experiment = prepare_store(Path.cwd())
    key = json.loads(json.loads(experiment_tags()[TAG])["state"])["orderByKey"]
    runs = [client.create_run(experiment, start).info.run_id for start in (2000, 1000, 3000)]
    found = [run.info.run_id for run in client.search_runs([experiment], order_by=[f"{key} DESC"])]
    assert found == [runs[2], runs[0], runs[1]]
