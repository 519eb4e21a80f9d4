"""Tracks the run of one stage in a process of its own: `python -m tasks.tracking.worker`, which a stage starts.

Standard input holds one call of `Tracker` a line, in JSON, the first one with the run's record. A call to wait is
answered by an empty line. The end of the input without `close` means that the stage was killed.
"""

import json
import os
import signal
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from tasks.tracking.datasets import DataSource
from tasks.tracking.models import ModelCopy
from tasks.tracking.record import RunRecord
from tasks.tracking.tracker import Owner, Tracker

PATHS = ("copy", "models")  # arguments that are paths


def main() -> int:
    """Reads calls until the run is closed; returns the exit status."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the stage decides when the run ends
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # nothing that a library prints is an answer
    sys.stdin.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    track(sys.stdin, answers)
    return 0


def track(calls: TextIO, answers: TextIO) -> None:
    """Opens a run as the first call says, and does the others; nothing if there is none."""
    first = calls.readline()
    if first:
        follow(_opened(json.loads(first)), calls, answers)


def follow(tracker: Tracker, lines: Iterable[str], answers: TextIO) -> None:
    """Does the calls in their order, up to `close`."""
    for line in lines:
        call = json.loads(line)
        name = call.pop("do")
        if name == "register":
            copy = call["copy"]
            call["copy"] = ModelCopy(**copy | {key: Path(copy[key]) for key in ("place", "folder")})
        else:
            call |= {key: Path(call[key]) for key in PATHS if key in call}
        getattr(tracker, name)(**call)
        if name == "wait":
            with suppress(BrokenPipeError):  # the stage was killed meanwhile, and the lines end
                print(file=answers, flush=True)
        if name == "close":
            return
    tracker.close(status="KILLED")


def _opened(call: Mapping[str, Any]) -> Tracker:
    os.chdir(call["cwd"])  # a fork stands where the pipeline does
    record = call["record"]
    data = [DataSource(**source) for source in record["data"]]
    return Tracker(RunRecord(**record | {"data": data}), Path(call["root"]), Owner(**call["owner"]))


if __name__ == "__main__":
    sys.exit(main())
