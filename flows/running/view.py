"""What a person sees of a run of the pipeline: the stages' lines, and how far the whole is.

In a terminal the last line says what is done, how long the rest will take and what runs now. In a log there is a line
when a stage starts and one when it ends, and in long stages one each minute.
"""

import os
import shutil
import sys
import time
from collections.abc import Collection
from contextlib import AbstractContextManager
from dataclasses import dataclass
from threading import Event, RLock, Thread
from types import TracebackType

from flows.running.graph import Graph
from flows.running.left import in_words, seconds_left
from flows.running.reproduce import GOOD, Ended
from rarlhf.messages.progress import LINE

# What DVC says of itself. That a stage runs and how it ended is said here, and errors are passed on.
DVC_SAYS = (
    "Running stage '",
    "> python",
    "Stage '",
    "Updating lock file 'dvc.lock'",
    "Generating lock file 'dvc.lock'",
    "Use `dvc push` to send your updates to remote storage.",
    "To track the changes with git, run:",
    "\tgit add dvc.lock",
    "To enable auto staging, run:",
    "\tdvc config core.autostage true",
)
TICK_SECONDS = 1.0  # between two looks at the clock, in a terminal
STEPS_SECONDS = 60.0  # between two lines in a log that say how far a stage is
WORDS = {
    Ended.COMPLETED: "done in {}",
    Ended.CACHED: "up to date ({})",
    Ended.FAILED: "failed after {}",
    Ended.CANCELLED: "stopped after {}",
}


@dataclass
class _Now:
    """A stage that runs: when it began, and what its last line of progress says of it."""

    begun: float
    said: float  # when it last said in a log how far it is, or began
    steps: str = ""
    end: float | None = None  # when it will end, by its own word


class View(AbstractContextManager["View"]):
    """Shows a run; as a context, it keeps the last line of a terminal up to date. Its calls come from any thread.

    Args:
        graph: stage to the stages it waits for.
        fresh: stages that are up to date and do not run.
        number: of stages that may run at the same time.
    """

    def __init__(self, graph: Graph, fresh: Collection[str], number: int) -> None:
        self._graph = graph
        self._number = number
        self._done = set(fresh)  # up to date
        self._ended = set(fresh)  # those and what failed or was left out
        self._now: dict[str, _Now] = {}
        self._took: dict[str, list[float]] = {}  # stage without method and seed to the seconds of each run
        self._terminal = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
        self._lock = RLock()
        self._over = Event()
        self._clock = Thread(target=self._tick, daemon=True)

    def __enter__(self) -> "View":
        if self._terminal:
            self._clock.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Takes the last line of a terminal away."""
        self._over.set()
        if self._terminal:
            self._clock.join()
            self._write("\r\x1b[K")

    def start(self, stage: str) -> None:
        """A stage starts."""
        with self._lock:
            self._now[stage] = _Now(time.monotonic(), time.monotonic())
            if not self._terminal:
                self.line(stage, "started", always=True)

    def line(self, stage: str, text: str, always: bool = False) -> None:
        """A stage wrote a line; its name stands before it where several stages run, or `always`."""
        if text.startswith(DVC_SAYS):
            return
        with self._lock:
            if stage in self._now and (steps := LINE.fullmatch(text)):
                self._now[stage].steps = steps[1]
                self._now[stage].end = time.monotonic() + int(steps[2])
                if not self._wanted(self._now[stage]):
                    return
            self._print(f"{stage}: {text}" if len(self._now) > 1 or always else text)

    def _wanted(self, now: _Now) -> bool:
        """Whether to print a line that says how far a stage is: in a log now and then, as the last line has it else."""
        if self._terminal:
            self._draw()
        elif time.monotonic() - now.said >= STEPS_SECONDS:
            now.said = time.monotonic()
            return True
        return False

    def end(self, stage: str, ended: Ended) -> None:
        """A stage has ended."""
        with self._lock:
            took = time.monotonic() - self._now.pop(stage).begun
            self._ended.add(stage)
            if ended in GOOD:
                self._done.add(stage)
            if ended is Ended.COMPLETED:
                self._took.setdefault(_kind(stage), []).append(took)
            words = WORDS[ended].format(in_words(took))
            self.line(stage, words if ended is Ended.CANCELLED else f"{words}; {self.summary()}", always=True)

    def leave_out(self, stage: str) -> None:
        """A stage will not run, because one that it needs has failed."""
        with self._lock:
            self._ended.add(stage)

    def summary(self) -> str:
        """Stages that are up to date, of all, and the time that is left, as far as it is known."""
        with self._lock:
            done = f"{len(self._done)} of {len(self._graph)} stages"
            known = {kind: sum(took) / len(took) for kind, took in self._took.items()}
            left = [stage for stage in self._graph if stage not in self._ended]
            spent = {stage: time.monotonic() - now.begun for stage, now in self._now.items()}
            ends = {stage: now.end - time.monotonic() for stage, now in self._now.items() if now.end is not None}
            running = {stage: max(0.0, ends.get(stage, known.get(_kind(stage), 0.0) - spent[stage])) for stage in spent}
            each = {stage: known[_kind(stage)] for stage in left if _kind(stage) in known}
            seconds = seconds_left(self._graph, self._ended, running, each, self._number)
        if not left or seconds < 1:
            return done
        sure = all(stage in each or stage in ends for stage in left)
        return f"{done}, {'about' if sure else 'more than'} {in_words(seconds)} left"

    def _tick(self) -> None:
        while not self._over.wait(TICK_SECONDS):
            self._draw()

    def _print(self, text: str) -> None:
        """Prints a line; in a terminal the last line stays below it."""
        if not self._terminal:
            print(text, flush=True)
            return
        self._write(f"\r\x1b[K{text}\n")
        self._draw()

    def _draw(self) -> None:
        with self._lock:
            now = [" ".join(filter(None, (stage, each.steps, self._spent(each)))) for stage, each in self._now.items()]
            text = " | ".join([self.summary(), *now])
            self._write(f"\r\x1b[K{text[: shutil.get_terminal_size().columns - 1]}")

    def _spent(self, now: _Now) -> str:
        return in_words(time.monotonic() - now.begun)

    def _write(self, text: str) -> None:
        with self._lock:
            sys.stdout.write(text)
            sys.stdout.flush()


def _kind(stage: str) -> str:
    return stage.partition("@")[0]
