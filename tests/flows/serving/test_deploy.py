import json
import os
import shutil
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

import flows.serving.deploy
from flows.serving.deploy import RECORD, down, running

DVC_YAML = """\
stages:
  left:
    cmd: touch left.here; timeout 60 sh -c 'until [ -e right.here ]; do sleep 0.1; done'
    deps: [presets]
  right:
    cmd: touch right.here; timeout 60 sh -c 'until [ -e left.here ]; do sleep 0.1; done'
    deps: [presets]
"""
SOCKET = {"Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA=="}
REPOSITORY = Path(flows.serving.deploy.__file__).parents[2]


def note(**roles: tuple[int, float]) -> None:
    RECORD.parent.mkdir(exist_ok=True)
    RECORD.write_text(json.dumps(roles))


def test_a_record_of_processes_that_are_gone_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    me = psutil.Process()
    dead = subprocess.Popen(["true"])
    dead.wait()
    note(server=(me.pid, me.create_time() - 3600), worker=(dead.pid, time.time()))  # a number used again; a dead one
    assert running() == {}
    down()  # does not end this process
    assert capsys.readouterr().out == "nothing that `make deploy` started is running\n"
    assert not RECORD.exists()
    note(server=(me.pid, me.create_time()))
    assert running() == {"server": me}


def test_a_broken_record_counts_as_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    RECORD.parent.mkdir()
    RECORD.write_text('{"server": [12')
    assert running() == {}


@pytest.fixture
def workspace(toy: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with the code, the deployment at an address of its own, and two stages that wait for each other."""
    (toy / "dvc.yaml").write_text(DVC_YAML)
    shutil.copy(REPOSITORY / "prefect.yaml", toy)
    for name in ("flows", "tasks", "rarlhf"):
        (toy / name).symlink_to(REPOSITORY / name)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{port}/api")
    monkeypatch.delenv("PYTHONPATH")  # a clone's code is found in its root, where it is not installed
    return toy


def call(*words: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=250)


def _pages_of_other_origins_can_do_nothing(api: str) -> None:
    """The ways by which a page made the worker run a shell command, and the ways round a preflight."""
    page = httpx.URL(api).copy_with(path="/")
    steps = [{"prefect.deployments.steps.run_shell_script": {"script": "touch attacked"}}]
    body = json.dumps({"name": "full", "flow_id": str(uuid.UUID(int=0)), "pull_steps": steps}).encode()
    evil, rebound = {"Origin": "http://evil.example"}, {"Host": f"evil.example:{page.port}"}
    preflight = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
    answers = [
        httpx.options(f"{api}/deployments/", headers=evil | preflight),
        httpx.post(f"{api}/deployments/", content=body, headers=evil | {"Content-Type": "application/json"}),
        httpx.post(f"{api}/deployments/", content=body, headers=evil | {"Content-Type": "text/plain"}),
        httpx.post(f"{api}/deployments/", content=body, headers=evil),  # without a type it is read as JSON
        httpx.get(f"{api}/admin/settings", headers=rebound),
        httpx.get(f"{api}/csrf-token?client=evil", headers=rebound),
        httpx.post(f"{api}/deployments/", content=body, headers=rebound | {"Origin": f"http://{rebound['Host']}"}),
        httpx.get(f"{api}/events/in", headers=evil | {"Connection": "Upgrade", "Upgrade": "websocket"} | SOCKET),
    ]
    assert [answer.status_code for answer in answers] == [403] * len(answers)
    assert not any("access-control-allow-origin" in answer.headers for answer in answers)
    assert "Missing CSRF token" in httpx.post(f"{api}/deployments/", content=body).text
    settings = httpx.get(f"{api}/admin/settings").json()["server"]
    assert "*" not in settings["api"]["cors_allowed_origins"]
    shown = httpx.get(page.join("ui-settings")).json()
    assert (shown["api_url"], shown["default_ui"]) == ("/api", "v1")  # v2 asks for a host of an analytics service
    assert not settings["ui"]["show_promotional_content"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_from_nothing_to_a_run_and_back(workspace: Path) -> None:
    try:
        first = call("flows.serving.deploy", "up")
        assert first.returncode == 0, first.stderr
        record: dict[str, Any] = json.loads(RECORD.read_text())
        assert f"server: started, {os.environ['PREFECT_API_URL'][:-4]} (process {record['server'][0]})" in first.stdout
        again = call("flows.serving.deploy", "up")
        assert "server: runs already" in again.stdout and "worker: runs already" in again.stdout
        assert json.loads(RECORD.read_text()) == record
        _pages_of_other_origins_can_do_nothing(os.environ["PREFECT_API_URL"])
        run = call("prefect", "deployment", "run", "rarlhf/full", "--watch", "-p", "parallel=2")
        assert run.returncode == 0, run.stdout + run.stderr
        refused = call("prefect", "deployment", "run", "rarlhf/full", "-p", "parallel=0")
        assert refused.returncode == 1
    finally:
        last = call("flows.serving.deploy", "down")
    assert (
        last.stdout == f"worker: ended (process {record['worker'][0]})\nserver: ended (process {record['server'][0]})\n"
    )
    assert not any(psutil.pid_exists(pid) for pid, _ in record.values())
