"""Two machines and two runs, each in a clone of its own with a home of its own, on one Prefect server."""

import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from tests.flows.machines.clones import Clone, git

# A vanished machine is noticed only after half a minute.
pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(900)]


@contextmanager
def started(folder: Path, log: Path, *module: str) -> Iterator[psutil.Popen]:
    """A module in a folder, its output in a file; killed with all below it at the end."""
    with log.open("w") as stream:
        process = psutil.Popen([sys.executable, "-m", *module], cwd=folder, stdout=stream, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        kill(process)
        process.wait(30)


def kill(process: psutil.Process) -> None:
    """Kills a process with all below it at once, as when a machine goes dark."""
    with suppress(psutil.NoSuchProcess):
        for each in [process, *process.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                each.send_signal(signal.SIGKILL)


def wait_for(what: Callable[[], object], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


def answers(url: str) -> bool:
    try:
        return urllib.request.urlopen(f"{url}/health", timeout=5).status == 200
    except (urllib.error.URLError, OSError):
        return False


def below(process: psutil.Popen, pid: int) -> bool:
    return pid in [child.pid for child in process.children(recursive=True)]


def test_a_stage_of_a_machine_that_vanishes_goes_to_another(
    clone: Clone, tmp_path: Path, prefect_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}/api"
    monkeypatch.setenv("PREFECT_API_URL", url)
    monkeypatch.setenv("PREFECT_WORKER_HEARTBEAT_SECONDS", "8")
    folders = {name: clone(name) for name in ("run", "second", "a", "b", "alone")}
    (folders["run"] / ".prefect").mkdir()
    (folders["run"] / ".prefect" / "prefect.db").write_bytes(prefect_database.read_bytes())
    asks = ("flows.pipeline", "--pool", "machines", "--remote", "store")
    with ExitStack() as stack:

        def start(name: str, *module: str) -> psutil.Popen:
            return stack.enter_context(started(folders[name], tmp_path / f"{name}.log", *module))

        stack.enter_context(started(folders["run"], tmp_path / "server.log", "flows.serving.gate", "--port", str(port)))
        wait_for(lambda: answers(url))
        machines = {name: start(name, "flows.machines.worker", "--pool", "machines") for name in "ab"}
        runs = [start("run", *asks), start("second", *asks)]
        told = [tmp_path / "run.log", tmp_path / "second.log"]
        wait_for(lambda: list(tmp_path.glob("here1-*")))
        wait_for(lambda: any("another run has asked for the same" in log.read_text() for log in told))
        (waiting,) = tmp_path.glob("here1-*")
        pid = int(waiting.name.removeprefix("here1-"))
        (lost,) = (machine for machine in machines.values() if below(machine, pid))
        kill(lost)
        wait_for(lambda: len(list(tmp_path.glob("here1-*"))) == 2)
        (tmp_path / "go").touch()
        assert [run.wait(300) for run in runs] == [0, 0], [log.read_text() for log in told]
        shown = told[0].read_text() + told[1].read_text()
        assert "its machine vanished (worker " in shown and "it starts again on another" in shown
        lost_again = told[0].read_text().count("train@2: its machine vanished")  # where the tests' machine is too busy
        assert len(list(tmp_path.glob("here2-*"))) == 1 + lost_again  # one machine ran it for both
        assert re.search(r"'train seed 2' - train@2: on .*:.*/[ab]$", shown, re.MULTILINE)  # lines from a machine
        assert "3 of 4 stages go to queue cpu of pool machines" in shown

        monkeypatch.chdir(folders["run"])
        Path("code.txt").write_text("another\n")
        git("commit", "-qam", "a commit that no machine has")
        refused = subprocess.run([sys.executable, "-m", *asks], capture_output=True, text=True, check=False)
        assert refused.returncode == 1 and "refuses train@1: the clone here is at commit" in refused.stderr

    subprocess.run([sys.executable, "-m", "dvc", "repro", "-q"], cwd=folders["alone"], check=True)
    wanted = [(folders["alone"] / path).read_bytes() for path in ("dvc.lock", "models/1.txt", "metrics/last.txt")]
    for name in ("run", "second"):
        assert [
            (folders[name] / path).read_bytes() for path in ("dvc.lock", "models/1.txt", "metrics/last.txt")
        ] == wanted
    assert not subprocess.run(
        ["git", "status", "--porcelain", "code.txt", "params.yaml"], capture_output=True, cwd=folders["b"], check=True
    ).stdout
