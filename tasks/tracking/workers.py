"""How a stage reaches the process that tracks its run: one of its own, or a fork of the pipeline run's.

A run of the pipeline has one process that has imported MLflow (tasks.tracking.forks), which costs each stage seconds.
A stage that was started by plain `dvc repro` finds none, and starts a process of its own.
"""

import os
import select
import socket
import subprocess
import sys
from abc import ABC, abstractmethod
from contextlib import suppress
from pathlib import Path
from typing import IO

from tasks.tracking.parent import PIPELINE

REPOSITORY = Path(__file__).parents[2]  # where Python finds `tasks`
ADDRESS = "tracking"  # file of the pipeline run's folder: the socket of its tracking process


class Worker(ABC):
    """The process that tracks one run. Each line written is a call."""

    calls: IO[str]
    answers: IO[str]

    def write(self, line: str) -> None:
        """Sends one line. Raises: OSError if the process is gone."""
        self.calls.write(line + "\n")
        self.calls.flush()

    def answered(self, seconds: float) -> None:
        """Waits for a line of the process, at most for so long."""
        if select.select([self.answers], [], [], seconds)[0]:
            self.answers.readline()

    @abstractmethod
    def end(self) -> None:
        """Says that no call will follow, and waits until the process has ended."""


class OwnProcess(Worker):
    """`python -m tasks.tracking.worker`."""

    def __init__(self) -> None:
        path = os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH"))))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tasks.tracking.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env={**os.environ, "PYTHONPATH": path},
            process_group=0,  # Ctrl-C is for the stage, which then closes the run
        )
        assert self.process.stdin is not None and self.process.stdout is not None
        self.calls, self.answers = self.process.stdin, self.process.stdout

    def end(self) -> None:
        """Waits for the process."""
        self.process.communicate()


class Fork(Worker):
    """A fork of the pipeline run's tracking process, which writes its warnings to this process's standard error."""

    def __init__(self, address: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.connect(str(address))
            socket.send_fds(self._socket, [b"\n"], [2])
        except OSError:
            self._socket.close()
            raise
        self.calls = self._socket.makefile("w", encoding="utf-8")
        self.answers = self._socket.makefile("r", encoding="utf-8")

    def end(self) -> None:
        """Waits until the process has closed its side."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
            self.answers.read()
        for stream in (self.answers, self.calls, self._socket):
            with suppress(OSError):
                stream.close()


def start_worker() -> Worker:
    """A fork of the pipeline run's tracking process where there is one, otherwise a process of its own.

    Raises: OSError if none can be started.
    """
    if folder := os.environ.get(PIPELINE):
        with suppress(OSError):
            return Fork(Path(folder, ADDRESS))
    return OwnProcess()
