"""Stages as Prefect tasks. Prefect orders them; a task that may start waits for a free share of the machine.

Each task runs `dvc repro` for its one stage, so DVC alone decides what is up to date. When a stage fails, the stages
that do not need it go on. Whatever ends the flow, `kill -9` included, makes the running stages save and end.
"""

import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any

from prefect import Task, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.futures import PrefectFuture
from prefect.states import Cancelled, Completed
from prefect.task_runners import ThreadPoolTaskRunner

from flows.running.devices import Shares
from flows.running.graph import Graph
from flows.running.guard import SIGNALLED, STOP_SECONDS
from rarlhf.config.errors import PASSING_STATUS
from tasks.inputs import title_of
from tasks.tracking.passwords import without_passwords

CACHED = ("didn't change, skipping", "is cached - skipping run")
KILLED = (-9, 137)  # a process that was killed, as when memory runs out; the same through a shell
LOCKED = ("is busy, it is being blocked by", "Unable to acquire lock")  # another `dvc` works on the same files
DVC_FAILED = 255
RETRY_SECONDS = 5.0


class PassingTrouble(RuntimeError):
    """A stage failed for a reason that may not come again: its process was killed, the network failed, a lock."""


class Processes(AbstractContextManager["Processes"]):
    """The processes that run now, each under a guard; as a context, an exception stops them.

    Args:
        held: numbers of open files that the guards keep open too, to hold the workspace until the last stage ends.
    """

    def __init__(self, held: Sequence[int] = ()) -> None:
        self.stopped = False
        self._held = held
        self._lock = Lock()
        self._running: list[subprocess.Popen[str]] = []

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
                start_new_session=True,  # a Ctrl-C in the terminal reaches the flow, which stops the stages itself
            )
            self._running.append(process)
            if self.stopped:
                _let_go(process)
        return process

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stops the processes where the block was left by an exception."""
        if error is not None:
            self.stop()

    def stop(self) -> None:
        """Stops all processes, and every one that starts later; takes up to STOP_SECONDS."""
        self.stopped = True
        with self._lock:
            for process in self._running:
                _let_go(process)
        for process in self._running:
            process.wait(STOP_SECONDS + 5)


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


def _let_go(process: "subprocess.Popen[str]") -> None:
    assert process.stdin is not None
    process.stdin.close()


def _may_pass(_task: object, _run: TaskRun, state: State[Any]) -> bool:
    return isinstance(state.result(raise_on_failure=False), PassingTrouble)


@task(retries=1, retry_delay_seconds=RETRY_SECONDS, retry_condition_fn=_may_pass, cache_policy=NO_CACHE)
def run_stage(stage: str, repro: Repro) -> State[None]:
    """Brings one stage up to date, as soon as there is a free share; its log lines go to Prefect's log.

    Args:
        stage: its name in dvc.yaml.
        repro: how it is brought up to date.
    """
    with repro.shares.one() as share:
        return _reproduce(stage, repro, share)


def _reproduce(stage: str, repro: Repro, share: Mapping[str, str]) -> State[None]:
    lines: list[str] = []
    for command in repro.commands(stage):
        status = 0 if repro.processes.stopped else _follow(stage, repro.processes.start(command, share), lines)
        if repro.processes.stopped:
            return Cancelled(message="stopped with the flow")
        if status:
            _fail(stage, lines, status)
    cached = any(text in line for line in lines for text in CACHED)
    return Completed(name="Cached") if cached else Completed()


def _follow(stage: str, process: "subprocess.Popen[str]", lines: list[str]) -> int:
    """Logs a stage's lines as they come, after its name; adds them to `lines`, and returns the exit status."""
    logger = get_run_logger()
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            lines.append(without_passwords(line.rstrip()))
            if lines[-1]:
                logger.info("%s: %s", stage, lines[-1])
    status = process.wait()
    _let_go(process)  # closes the pipe
    return status


@task(cache_policy=NO_CACHE)
def skip_stage() -> State[None]:
    """The task of a stage that was up to date when the flow began, as were all stages that it needs; runs nothing."""
    return Completed(name="Cached")


def _fail(stage: str, lines: Sequence[str], status: int) -> None:
    """Raises the error of a failed command; `status` is the command's, and `dvc` has another status than its stage."""
    killed = SIGNALLED < status < DVC_FAILED
    told = (
        [line for line in lines if line.startswith(("error:", "ERROR:"))] or ["DVC was killed"] * killed or lines[-1:]
    )
    passing = killed or status == PASSING_STATUS or (status == DVC_FAILED and _dvc_may_pass(stage, lines))
    kind = PassingTrouble if passing else RuntimeError
    raise kind(f"{stage}: {' '.join(told)}")


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


def run_stages(graph: Graph, fresh: set[str], repro: Repro) -> dict[str, State[Any]]:
    """Runs the stages of a graph within a flow run; returns the final state of each.

    A stage whose upstream failed is not started: its state is NotReady.

    Args:
        graph: stage to the stages it waits for, those first.
        fresh: stages that are up to date.
        repro: how a stage is brought up to date.
    """
    futures: dict[str, PrefectFuture[Any]] = {}
    # As many workers as shares, so that a stage that waits for one is not shown as running. They take the stages in the
    # graph's order, so what a stage waits for is always ahead of it.
    runner: ThreadPoolTaskRunner[Any] = ThreadPoolTaskRunner(max_workers=repro.shares.number)
    with runner, repro.processes:  # in this order: the runner waits for its workers, and those for the processes
        for stage, upstream in graph.items():
            skip = stage in fresh
            work: Task[..., State[None]] = skip_stage if skip else run_stage
            named = work.with_options(name=stage, task_run_name=title_of(stage))
            parameters = {} if skip else {"stage": stage, "repro": repro}
            futures[stage] = runner.submit(named, parameters, [futures[name] for name in upstream])
        return {stage: final_state(future) for stage, future in futures.items()}


def final_state(future: PrefectFuture[Any]) -> State[Any]:
    """The state in which a task ended; waits for its end."""
    future.wait()
    return future.state
