"""Runs a command and stops it in good order when its caller is gone: `python -m flows.running.guard COMMAND...`.

The standard input is a pipe from the caller, which writes nothing into it. When the caller's end is closed, on purpose
or because the caller was killed, the command is stopped: it may save first, and none of its children stays.
"""

import os
import select
import signal
import subprocess
import sys
from contextlib import suppress

import psutil

SIGNALLED = 128  # a command that was killed has this exit status plus the signal's number
POLL_SECONDS = 0.05
SAVE_SECONDS = 15.0  # a training reaches a point where it saves in this time; a slow rollout takes 10 s
TIDY_SECONDS = 3.0  # after a second SIGINT, on which stages end at once
LOCK_SECONDS = 2.0  # after the stage was killed, for DVC to give its lock back
STOP_SECONDS = SAVE_SECONDS + TIDY_SECONDS + LOCK_SECONDS  # Prefect kills a flow 30 s after it was asked to end


def main() -> int:
    """Runs the command of the command line; returns its exit status."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)  # only the pipe says when to stop
    process = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, start_new_session=True)
    while process.poll() is None:
        if select.select([sys.stdin], [], [], POLL_SECONDS)[0]:
            stop(process)
    if process.returncode >= 0:
        return process.returncode
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # DVC was killed, its stage was not
    return SIGNALLED - process.returncode


def stop(process: "subprocess.Popen[bytes]") -> None:
    """Asks the leader of a process group to save and end, asks again, then kills it and all its descendants.

    DVC gives its lock back on SIGINT; while its command runs, DVC waits for the command to end.
    """
    family: list[psutil.Process] = []
    for seconds in (SAVE_SECONDS, TIDY_SECONDS):
        family += _descendants(process.pid)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGINT)
        if _ended(process, seconds):
            break
    _kill(family + _descendants(process.pid))
    if not _ended(process, LOCK_SECONDS):
        process.kill()


def _ended(process: "subprocess.Popen[bytes]", seconds: float) -> bool:
    with suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    return process.returncode is not None


def _descendants(pid: int) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).children(recursive=True)
    return []


def _kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()


if __name__ == "__main__":
    sys.exit(main())
