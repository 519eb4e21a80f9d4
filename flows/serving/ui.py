"""The web pages: MLflow's and Prefect's servers on the loopback address, until Ctrl-C ends both.

Where `make deploy` has started Prefect's server, its address is printed, and it runs on.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from flows.serving.server import SERVER, address, environment, own_server_answers, page
from rarlhf.config.errors import UserError
from tasks.tracking.store import prepare_store
from tasks.tracking.views import runs_page

HOST = "127.0.0.1"
START_SECONDS = 120.0
STOP_SECONDS = 10.0
SHOWN = 200  # characters of another program's message
Servers = dict[str, tuple[int, list[str]]]
SERVERS: Servers = {
    "MLflow": (
        5000,
        [
            "mlflow",
            "server",
            "--backend-store-uri",
            "sqlite:///mlflow.db",
            "--workers",
            "1",
            "--allowed-hosts",  # MLflow's own list lets in 10.any.name, which may be a host elsewhere
            f"{HOST},{HOST}:*,localhost,localhost:*",
            "--uvicorn-opts",
            "--log-level=warning",
        ],
    ),
    "Prefect": (address()[1], SERVER),
}
ENVIRONMENT = {
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # without its job queues MLflow starts in 7 s instead of 25
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "PYTHONWARNINGS": "ignore",
}


def main() -> int:
    """Starts both servers, prints their addresses, waits for a signal; returns the exit status."""
    servers = dict(SERVERS)
    try:
        if "Prefect" in servers and own_server_answers():
            print(f"Prefect: {page()} (runs already, and runs on)", flush=True)
            del servers["Prefect"]
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    taken = [f"{name} {HOST}:{port}" for name, (port, _) in servers.items() if _answers(port)]
    if taken:
        print(f"error: the address is in use already: {', '.join(taken)}", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, _interrupt)
    os.environ.pop("MLFLOW_TRACKING_URI", None)  # the pages are of this folder's store
    try:
        _, experiment = prepare_store(Path.cwd())  # a stage may start at the same moment
    except Exception as error:  # of SQLite, its wrapper or MLflow: damaged, locked, not writable, of a newer version
        told = " ".join(str(error).split())[:SHOWN]
        print(f"error: mlflow.db cannot be opened ({told}); make it writable or move it away", file=sys.stderr)
        return 1
    pages = {name: f"http://{HOST}:{port}" for name, (port, _) in servers.items()}
    if "MLflow" in pages:
        pages["MLflow"] = runs_page(experiment, pages["MLflow"])
    try:
        with _running(servers) as processes:
            return _watch(processes, servers, pages)
    except KeyboardInterrupt:
        return 0


def _watch(processes: dict[str, subprocess.Popen[bytes]], servers: Servers, pages: Mapping[str, str]) -> int:
    """Prints each server's address when it answers, then waits; returns 1 when one ends by itself."""
    waiting = dict.fromkeys(servers, time.monotonic() + START_SECONDS)
    while True:
        for name, process in processes.items():
            if process.poll() is not None:
                print(f"error: {name}'s server ended with status {process.returncode}", file=sys.stderr)
                return 1
        for name in [name for name in waiting if _answers(servers[name][0])]:
            del waiting[name]
            print(f"{name}: {pages[name]}", flush=True)
            if not waiting:
                print("Ctrl-C ends both." if len(servers) > 1 else "Ctrl-C ends it.", flush=True)
        if any(time.monotonic() > end for end in waiting.values()):
            print(f"error: no answer from {', '.join(waiting)} after {START_SECONDS:.0f} s", file=sys.stderr)
            return 1
        time.sleep(0.5)


@contextmanager
def _running(servers: Servers) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """The servers, each in a process group of its own; they end with the context."""
    processes = {name: _start(port, command) for name, (port, command) in servers.items()}
    try:
        yield processes
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        for process in processes.values():
            _stop(process)


def _start(port: int, command: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", *command, "--host", HOST, "--port", str(port)],
        env={**environment(), **ENVIRONMENT},
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )


def _stop(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            os.killpg(process.pid, number)
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                continue


def _answers(port: int) -> bool:
    try:
        socket.create_connection((HOST, port), timeout=1).close()
    except OSError:
        return False
    return True


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
