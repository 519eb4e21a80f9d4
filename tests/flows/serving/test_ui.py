import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import flows.serving.ui

APP = """
async def app(scope, receive, send):
    pass
"""
MAIN = """
import sys
import flows.serving.ui
entries = zip(*[iter(sys.argv[1:])] * 3)
flows.serving.ui.SERVERS = {name: (int(port), command.split()) for name, port, command in entries}
flows.serving.ui.prepare_store = lambda root: (None, "7")
flows.serving.ui.own_server_answers = lambda: True
sys.exit(flows.serving.ui.main())
"""
UVICORN = "uvicorn toyapp:app --lifespan off --log-level error"


def free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return str(server.getsockname()[1])


def start(*servers: str) -> subprocess.Popen[str]:
    """`make ui` with other servers, each given by name, port and command."""
    environment = {**os.environ, "PYTHONPATH": str(Path(flows.serving.ui.__file__).parents[2])}
    return subprocess.Popen(
        [sys.executable, "-c", MAIN, *servers],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("toyapp.py").write_text(APP)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_addresses_are_printed_and_a_signal_ends_both(number: signal.Signals) -> None:
    one, two = free_port(), free_port()
    process = start("One", one, UVICORN, "Two", two, UVICORN)
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(3)]
    assert sorted(lines) == ["Ctrl-C ends both.\n", f"One: http://127.0.0.1:{one}\n", f"Two: http://127.0.0.1:{two}\n"]
    process.send_signal(number)
    _, shown = process.communicate(timeout=30)
    assert (process.returncode, shown) == (0, "")
    assert not flows.serving.ui._answers(int(one)) and not flows.serving.ui._answers(int(two))


def test_mlflows_address_is_that_of_the_list_of_runs() -> None:
    port = free_port()
    process = start("MLflow", port, UVICORN)
    assert process.stdout is not None
    page = f"http://127.0.0.1:{port}/#/experiments/7/runs?workflowType=machine_learning&viewStateShareKey=results"
    assert process.stdout.readline() == f"MLflow: {page}\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30)[1] == ""


def test_a_server_that_ends_by_itself_takes_the_other_along() -> None:
    one = free_port()
    process = start("One", one, UVICORN, "Two", free_port(), "platform")
    _, shown = process.communicate(timeout=30)
    assert process.returncode == 1
    assert shown.startswith("error: Two's server ended with status ")
    assert not flows.serving.ui._answers(int(one))


def test_the_server_of_make_deploy_is_shown_and_runs_on() -> None:
    one = free_port()
    process = start("One", one, UVICORN, "Prefect", free_port(), "platform")
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(3)]
    assert "(runs already, and runs on)" in lines[0]
    assert lines[1:] == [f"One: http://127.0.0.1:{one}\n", "Ctrl-C ends it.\n"]
    process.send_signal(signal.SIGINT)
    _, shown = process.communicate(timeout=30)
    assert (process.returncode, shown) == (0, "")


def test_an_address_in_use_is_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        process = start("One", str(port), UVICORN)
        _, shown = process.communicate(timeout=30)
    assert (process.returncode, shown) == (1, f"error: the address is in use already: One 127.0.0.1:{port}\n")


def test_a_store_that_cannot_be_opened_is_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("mlflow.db").write_text("not a database")
    monkeypatch.setattr(flows.serving.ui, "SERVERS", {"MLflow": (int(free_port()), ["nothing"])})
    monkeypatch.setattr(flows.serving.ui.signal, "signal", lambda *_: None)
    assert flows.serving.ui.main() == 1
    shown = capsys.readouterr().err
    assert shown == "error: mlflow.db cannot be opened (file is not a database); make it writable or move it away\n"


@pytest.mark.parametrize("path", ["/ajax-api/2.0/mlflow/runs/search", "/get-artifact"])
def test_mlflows_server_answers_no_page_of_others(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The attacks on MLflow's own gate, set up by the options that `make ui` gives."""
    from flask import Flask
    from mlflow.server.security import init_security_middleware

    words = flows.serving.ui.SERVERS["MLflow"][1]
    monkeypatch.setenv("MLFLOW_SERVER_ALLOWED_HOSTS", words[words.index("--allowed-hosts") + 1])
    app = Flask("mlflow")
    app.add_url_rule(path, "answer", lambda: "yes", methods=["GET", "POST"])
    init_security_middleware(app)
    client = app.test_client()

    def ask(host: str, method: str = "GET", **headers: str) -> int:
        return client.open(path, method=method, headers={"Host": host, **headers}).status_code

    for host in ("127.0.0.1:5001", "localhost:5001"):
        assert ask(host) == ask(host, "POST", Origin=f"http://{host}") == 200
    for host in ("evil.example:5001", "10.evil.example:5001", "192.168.evil.example", "127.0.0.1.a"):
        assert ask(host) == ask(host, "POST", Origin=f"http://{host}") == 403
    if path.startswith("/ajax-api/"):  # what changes something
        for origin in ("http://evil.example", "null"):
            assert ask("127.0.0.1:5001", "POST", Origin=origin, Content_Type="text/plain") == 403
    answer = client.options(path, headers={"Host": "127.0.0.1:5001", "Origin": "http://evil.example"})
    assert "access-control-allow-origin" not in answer.headers


def test_nothing_is_told_to_mlflows_makers() -> None:
    assert flows.serving.ui.ENVIRONMENT.items() >= {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}.items()
