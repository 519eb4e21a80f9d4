"""Runs a command and stops it in good order once nobody asks for it: `python -m flows.running.guard COMMAND...`.

The standard input is a pipe whose other end belongs to the process that asks, which writes nothing into it. When that
end is closed, on purpose or because the process was killed, the command is stopped: it may save, and no child stays.
"""

import os
import select
import signal
import subprocess
import sys
from contextlib import suppress

import psutil

SIGNALLED = 128  # exit status of a command that was killed, less the signal's number
POLL_SECONDS = 0.05
SAVE_SECONDS = 15.0  # in this time a training reaches a point where it saves; a slow rollout takes ten
TIDY_SECONDS = 3.0  # after a second SIGINT, which stages obey at once
LOCK_SECONDS = 2.0  # after the stage was killed, for DVC to give its lock back
STOP_SECONDS = SAVE_SECONDS + TIDY_SECONDS + LOCK_SECONDS  # Prefect kills a flow 30 s after it was asked to end


def main() -> int:
    """Runs the command line's command; returns its exit status."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)  # the pipe alone says when to stop
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
    """Asks the leader of a process group to save and end, then insists, then kills it and all its descendants.

    SIGINT is the signal on which DVC gives its lock back; while its command runs, DVC leaves it to that.
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
