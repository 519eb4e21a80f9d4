"""A password in an address, against every place that stores or shows what it came across."""

import json
import logging
import os
import socket
import sqlite3
from pathlib import Path
from typing import Any

import httpx
import pytest

import flows.artifacts
import flows.pipeline
import flows.running.remote
import flows.serving.deploy
import tasks.running.stage
from flows.artifacts import publish_mlflow_link
from flows.running.processes import Processes
from flows.running.reproduce import follow
from flows.serving.server import environment, own_server_answers, page
from rarlhf.config.errors import UserError
from tasks.running.stage import run_stage
from tasks.tracking.passwords import without_passwords
from tasks.tracking.record import RunRecord
from tasks.tracking.tracker import Tracker

SECRET = "hush-h4sh"
ADDRESS = f"http://ann:{SECRET}@127.0.0.1"


@pytest.fixture
def port(toy: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """Of a tracking server that does not answer, at an address with a password."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        number: int = server.getsockname()[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{ADDRESS}:{number}")
    return number


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("at http://ann:pw@host:1/x, https://bob@b/", "at http://host:1/x, https://b/"),
        ("s3://key:se:cr@et@bucket/path", "s3://bucket/path"),
        ("postgresql://ann:p%40w@db/x?y=a@b", "postgresql://db/x?y=a@b"),
        ("write to ann@example.org about http://host/a@b", "write to ann@example.org about http://host/a@b"),
        ('["http://host", "ann@example.org"]', '["http://host", "ann@example.org"]'),
    ],
)
def test_addresses_lose_user_and_password(text: str, left: str) -> None:
    assert without_passwords(text) == left


def test_pieces_of_the_addresses_in_use_are_left_out_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", f"{ADDRESS}/api")
    assert without_passwords(f"Failed to parse: ann:{SECRET}@127.0.0.1/api") == "Failed to parse: 127.0.0.1/api"
    assert without_passwords(f"no port {SECRET!r}") == "no port '...'"
    monkeypatch.setenv("PREFECT_API_URL", "http://a:b@host/api")
    assert without_passwords("a bad line") == "a bad line"  # a password of one letter is in every word


def test_the_link_on_prefects_page(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    links: list[str] = []
    monkeypatch.setattr(flows.artifacts, "create_link_artifact", lambda link, **_: links.append(link))
    publish_mlflow_link("1", "abc")
    assert links == [f"http://127.0.0.1:{port}/#/experiments/1/runs/abc?workflowType=machine_learning"]


def test_warnings_of_tracking(port: int, capsys: pytest.CaptureFixture[str]) -> None:
    tracker = Tracker(RunRecord("toy", {}), Path.cwd())
    tracker.close("FINISHED")
    shown = capsys.readouterr()
    assert f"http://127.0.0.1:{port}/api/" in shown.err  # MLflow's error names the address, without them
    assert SECRET not in shown.err + shown.out and "ann" not in shown.err


def test_what_mlflow_keeps(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a run whose environment has a password, nothing in the store does."""
    monkeypatch.setenv("PREFECT_API_URL", f"{ADDRESS}:4200/api")
    tracker = Tracker(RunRecord("toy", {"stage": "toy"}, {"a": 1}), toy)
    tracker.close("FINISHED")
    with sqlite3.connect(toy / "mlflow.db") as store:
        assert SECRET not in "\n".join(store.iterdump())
    store.close()


@pytest.mark.parametrize("error", [UserError, ValueError])
def test_a_stages_last_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: type[Exception]
) -> None:
    def fail(*_: object) -> None:
        raise error(f"no answer from {ADDRESS}/x")

    def toy(run: Any) -> None:
        """Does nothing."""

    monkeypatch.setattr(tasks.running.stage, "_execute", fail)
    assert run_stage(toy, []) == 1
    shown = capsys.readouterr()
    assert "no answer from http://127.0.0.1/x" in shown.err and SECRET not in shown.err + shown.out


def test_lines_of_stages() -> None:
    lines: list[str] = []
    said: list[str] = []
    command = ["sh", "-c", f"echo 'ERROR: {ADDRESS}/x'"]
    with Processes().start(command, {}) as process:
        follow(process, lines, said.append)
    assert lines == said == ["ERROR: http://127.0.0.1/x"]


def test_warnings_of_the_flow(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(flows.pipeline, "get_run_logger", lambda: logging.getLogger("flow"))

    class Broken:
        def wait(self, seconds: float) -> None:
            request = httpx.Request("POST", f"{ADDRESS}/api/artifacts/")
            httpx.Response(403, request=request).raise_for_status()

    flows.pipeline._show({}, Broken())  # type: ignore[arg-type]
    assert "127.0.0.1/api/artifacts" in caplog.text and SECRET not in caplog.text


def test_prefects_commands_and_addresses(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    monkeypatch.setenv("PREFECT_API_URL", f"{ADDRESS}:9/api")
    with temporary_settings(updates={PREFECT_API_URL: f"{ADDRESS}:9/api"}):
        assert page() == "http://127.0.0.1:9" == environment()["PREFECT_UI_URL"]
        assert not own_server_answers()
        with pytest.raises(UserError) as caught:
            monkeypatch.setattr(flows.serving.deploy.sys, "executable", "/bin/echo")
            monkeypatch.setattr(flows.serving.deploy.subprocess, "run", _failing)
            flows.serving.deploy._prefect("deploy")
    assert str(caught.value) == "`prefect deploy` failed: cannot reach http://127.0.0.1:9/api"


def _failing(command: list[str], **_: object) -> Any:
    from subprocess import CompletedProcess

    return CompletedProcess(command, 1, "", f"cannot reach {os.environ['PREFECT_API_URL']}\n")


def test_errors_of_a_dvc_remote(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    class Broken:
        def __init__(self, **_: object) -> None:
            raise OSError(f"cannot read {ADDRESS}/store")

    monkeypatch.setattr("dvc.repo.Repo", Broken)
    with pytest.raises(UserError, match="^remote team: cannot read http://127.0.0.1/store$") as caught:
        flows.running.remote.push("team", ["sft"])
    assert caught.value.__suppress_context__  # Prefect's log has the causes too
    monkeypatch.setattr("sys.argv", ["remote", "team", "sft"])
    assert flows.running.remote.main() == 1
    assert SECRET not in json.dumps(capsys.readouterr())
