"""The processes of the running stages, each under a guard: whatever ends this process, they save and end."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from threading import Event, Lock
from types import TracebackType

from flows.running.guard import STOP_SECONDS


class Processes(AbstractContextManager["Processes"]):
    """The processes that run now, each under a guard; as a context, an exception stops them.

    Args:
        held: numbers of open files that the guards keep open too, to hold the workspace until the last stage ends.
    """

    def __init__(self, held: Sequence[int] = ()) -> None:
        self._stop = Event()
        self._held = held
        self._lock = Lock()
        self._running: list[subprocess.Popen[str]] = []

    @property
    def stopped(self) -> bool:
        """Whether the processes were stopped."""
        return self._stop.is_set()

    def wait(self, seconds: float) -> None:
        """Waits, at most until the processes are stopped."""
        self._stop.wait(seconds)

    def start(self, command: Sequence[str], environment: Mapping[str, str]) -> "subprocess.Popen[str]":
        """Starts a command under a guard, its output in one pipe."""
        bin_folder = str(Path(sys.executable).parent)  # the stages call `python`
        path = os.pathsep.join((bin_folder, os.environ["PATH"]))
        with self._lock:
            process = subprocess.Popen(
                [sys.executable, "-m", "flows.running.guard", *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env={**os.environ, "PYTHONUNBUFFERED": "1", "PATH": path, **environment},
                pass_fds=self._held,
                start_new_session=True,  # a Ctrl-C in the terminal reaches the caller, which stops the stages itself
            )
            self._running.append(process)
            if self.stopped:
                let_go(process)
        return process

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stops the processes where the block was left by an exception."""
        if error is not None:
            self.stop()

    def stop(self) -> None:
        """Stops all processes, and every one that starts later; takes up to STOP_SECONDS."""
        self._stop.set()
        with self._lock:
            for process in self._running:
                let_go(process)
        for process in self._running:
            process.wait(STOP_SECONDS + 5)


def let_go(process: "subprocess.Popen[str]") -> None:
    """Closes the pipe whose end tells the guard that nobody asks for its command any more."""
    assert process.stdin is not None
    process.stdin.close()
