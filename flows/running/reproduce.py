"""Brings one stage up to date by `dvc repro`, so DVC alone decides what is to be done, and says how that ended."""

import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from flows.running.devices import Shares
from flows.running.guard import SIGNALLED
from flows.running.processes import Processes, let_go
from rarlhf.config.errors import PASSING_STATUS
from tasks.tracking.passwords import without_passwords

SKIPPED = ("didn't change, skipping", "is cached - skipping run")
KILLED = (-9, 137)  # a process that was killed, as when memory runs out; the same through a shell
LOCKED = ("is busy, it is being blocked by", "Unable to acquire lock")  # another `dvc` works on the same files
DVC_FAILED = 255
RETRY_SECONDS = 5.0  # before a stage is tried again whose failure may pass


class Ended(StrEnum):
    """How a stage ended, in the words of Prefect's states and of MLflow's table of stages."""

    COMPLETED = "Completed"
    CACHED = "Cached"  # it was up to date, or its results were known
    FAILED = "Failed"
    CANCELLED = "Cancelled"  # stopped with the whole
    NOT_RUN = "NotRun"


GOOD = (Ended.COMPLETED, Ended.CACHED)  # the stage is up to date


class StageError(RuntimeError):
    """A stage failed.

    Attributes:
        told: the error in the stage's or DVC's own words, one line or more.
    """

    def __init__(self, stage: str, told: Sequence[str]) -> None:
        super().__init__(f"{stage}: {' '.join(told)}")
        self.told = list(told)


class PassingTrouble(StageError):
    """A stage failed for a reason that may not come again: its process was killed, the network failed, a lock."""


@dataclass(frozen=True)
class Repro:
    """How stages are brought up to date.

    Attributes:
        force: whether stages that are up to date run too.
        remote: name of a DVC remote that is asked for the results first; None where there is none.
        processes: those of the running stages.
        shares: of the machine; each running stage holds one.
    """

    force: bool
    remote: str | None
    processes: Processes
    shares: Shares

    def commands(self, stage: str) -> list[list[str]]:
        """The commands for a stage, in their order."""
        module = [sys.executable, "-m"]
        force = ["--force"] * self.force
        dvc = [*module, "dvc", "--wait-for-lock", "repro", "--single-item", *force, stage]
        if self.remote is None or self.force:
            return [dvc]
        return [[*module, "flows.running.remote", self.remote, stage], dvc]


def reproduce(stage: str, repro: Repro, say: Callable[[str], object]) -> Ended:
    """Brings one stage up to date, as soon as there is a free share; returns how it ended.

    Args:
        stage: its name in dvc.yaml.
        repro: how it is brought up to date.
        say: is given each line of its output that is not empty.

    Raises: PassingTrouble or another StageError if it failed.
    """
    lines: list[str] = []
    with repro.shares.one() as share:
        for command in repro.commands(stage):
            status = 0 if repro.processes.stopped else run_command(command, repro.processes, share, lines, say)
            if repro.processes.stopped:
                return Ended.CANCELLED
            if status:
                raise error_of(stage, lines, status)
    return Ended.CACHED if any(text in line for line in lines for text in SKIPPED) else Ended.COMPLETED


def run_command(
    command: Sequence[str],
    processes: Processes,
    share: Mapping[str, str],
    lines: list[str],
    say: Callable[[str], object],
) -> int:
    """Runs a command, hands on its lines as they come, adds them to `lines`, and returns the exit status."""
    process = processes.start(command, share)
    follow(process, lines, say)
    status = process.wait()
    let_go(process)  # closes the pipe
    return status


def follow(process: "subprocess.Popen[str]", lines: list[str], say: Callable[[str], object]) -> None:
    """Hands on the lines of a process as they come, without passwords, and adds them to `lines`."""
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            lines.append(without_passwords(line.rstrip()))
            if lines[-1]:
                say(lines[-1])


def error_of(stage: str, lines: Sequence[str], status: int) -> StageError:
    """The error of a failed command; `status` is the command's, and `dvc` has another status than its stage."""
    killed = SIGNALLED < status < DVC_FAILED
    told = (
        [line for line in lines if line.startswith(("error:", "ERROR:"))] or ["DVC was killed"] * killed or lines[-1:]
    )
    passing = killed or status == PASSING_STATUS or (status == DVC_FAILED and _dvc_may_pass(stage, lines))
    return (PassingTrouble if passing else StageError)(stage, told)


def _dvc_may_pass(stage: str, lines: Sequence[str]) -> bool:
    """Whether a lock stopped DVC, or its stage ended with an exit status that may not come again.

    The last error that DVC itself printed says so, after everything that the stage wrote.
    """
    errors = [number for number, line in enumerate(lines) if line.startswith("ERROR: ")]
    last = "\n".join(lines[errors[-1] :]) if errors else ""
    if last.startswith(f"ERROR: failed to reproduce '{stage}': failed to run: "):
        status = re.search(r", exited with (-?\d+)$", last, re.MULTILINE)
        return status is not None and int(status[1]) in (PASSING_STATUS, *KILLED)
    return any(text in last for text in LOCKED)
