import subprocess
import sys
from pathlib import Path

import pytest

import flows.serving.workspace
from flows.running.processes import Processes
from flows.serving.workspace import hold_workspace, holder

HOLD = """
import sys
from flows.serving.workspace import hold_workspace
with hold_workspace(lambda text: print(text, flush=True)):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(flows.serving.workspace.__file__).parents[2]))


def test_one_run_at_a_time_holds_the_workspace() -> None:
    assert holder() is None
    with subprocess.Popen([sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as first:
        assert first.stdout is not None and first.stdin is not None
        assert first.stdout.readline() == b"held\n"
        assert holder() == first.pid
        with subprocess.Popen([sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as second:
            assert second.stdout is not None and second.stdin is not None
            assert second.stdout.readline() == b"another run works in this workspace; waiting for its end\n"
            first.stdin.close()
            assert second.stdout.readline() == b"held\n"
            assert first.poll() is not None or first.wait(10) == 0
            second.stdin.close()
    assert holder() is None


def test_a_killed_run_holds_the_workspace_until_its_stages_have_ended() -> None:
    with hold_workspace(print) as held:
        processes = Processes([held])
        process = processes.start([sys.executable, "-c", "import time; time.sleep(60)"], {})
    assert holder() is not None  # the guard holds it still
    processes.stop()
    assert process.stdout is not None
    process.stdout.close()
    assert holder() is None
