import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

import flows.running.guard
from flows.running.guard import stop

REPOSITORY = Path(flows.running.guard.__file__).parents[2]
SAVING = """
import signal, sys, time
try:
    print("started", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    print("saved", flush=True)
    sys.exit(130)
"""
STUBBORN = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGINT, lambda *_: print("asked", flush=True))
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
print(child.pid, flush=True)
while True:
    time.sleep(0.1)
"""


def guarded(program: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "flows.running.guard", sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    )


@pytest.mark.parametrize(("program", "status"), [("pass", 0), ("raise SystemExit(3)", 3)])
def test_the_status_is_that_of_the_command(program: str, status: int) -> None:
    with guarded(program) as guard:
        assert guard.wait(30) == status


def test_a_command_that_nobody_asks_for_any_more_saves_and_ends() -> None:
    with guarded(SAVING) as guard:
        assert guard.stdout is not None and guard.stdin is not None
        assert guard.stdout.readline() == "started\n"
        guard.stdin.close()
        assert guard.stdout.readline() == "saved\n"
        assert guard.wait(30) == 130


def test_a_killed_command_leaves_no_child() -> None:
    leader = "import subprocess, sys, time; print(subprocess.Popen(['sleep', '60']).pid, flush=True); time.sleep(60)"
    with guarded(leader) as guard:
        assert guard.stdout is not None
        child = psutil.Process(int(guard.stdout.readline()))
        child.parent().kill()
        assert guard.wait(30) == 128 + 9
        assert gone(child)


def test_a_command_that_does_not_obey_is_killed_with_its_children(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SAVE_SECONDS", "TIDY_SECONDS", "LOCK_SECONDS"):
        monkeypatch.setattr(flows.running.guard, name, 0.5)
    command = [sys.executable, "-c", STUBBORN]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout is not None
        child = psutil.Process(int(process.stdout.readline()))
        assert os.getpgid(child.pid) != os.getpgid(process.pid)  # a launcher's workers have groups of their own
        stop(process)
        assert process.wait(30) == -9
        assert process.stdout.read() == b"asked\nasked\n"
        assert gone(child)


def gone(process: psutil.Process) -> bool:
    """Whether a process has ended, or does within a moment; one that nobody has asked about yet counts."""
    for _ in range(50):
        if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.1)
    return False
