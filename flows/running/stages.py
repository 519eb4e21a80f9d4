"""Stages as Prefect tasks: what does not wait for anything runs at the same time, as far as there are shares for it.

Each task runs `dvc repro` for its one stage, so that DVC alone decides what is fresh. A stage that fails does not stop
those that do not need it. Whatever ends the flow, `kill -9` included, stops the running stages in good order.
"""

import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from prefect import Task, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.futures import PrefectConcurrentFuture
from prefect.states import Cancelled, Completed

from flows.running.graph import Graph
from flows.running.guard import SIGNALLED, STOP_SECONDS
from rarlhf.config.errors import PASSING_STATUS
from tasks.tracking.passwords import without_passwords

CACHED = ("didn't change, skipping", "is cached - skipping run")
KILLED = (-9, 137)  # by a machine out of memory or by hand; by way of a shell
LOCKED = ("is busy, it is being blocked by", "Unable to acquire lock")  # another `dvc` reads or writes the same files
DVC_FAILED = 255
RETRY_SECONDS = 5.0


class PassingTrouble(RuntimeError):
    """A stage failed by something that may not come again: its process was killed, the network, a lock."""


class Processes:
    """The processes of the stages that run now, each under a guard; `stop` ends them, and any that starts later.

    Args:
        held: numbers of files that the guards keep open too: they hold the workspace until the last stage has ended.
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

    def stop(self) -> None:
        """Stops them all, which takes up to STOP_SECONDS."""
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
        force: whether those that are up to date run too.
        remote: name of a DVC remote that is asked for the results first, or None.
        processes: where the stages' processes are kept.
    """

    force: bool
    remote: str | None
    processes: Processes

    def commands(self, stage: str) -> list[list[str]]:
        """What is run for a stage, one after the other."""
        dvc = [
            sys.executable,
            "-m",
            "dvc",
            "--wait-for-lock",
            "repro",
            "--single-item",
            *["--force"] * self.force,
            stage,
        ]
        take = (
            [sys.executable, "-m", "flows.running.remote", self.remote, stage]
            if self.remote and not self.force
            else None
        )
        return [take, dvc] if take else [dvc]


def _let_go(process: "subprocess.Popen[str]") -> None:
    assert process.stdin is not None
    process.stdin.close()


def _may_pass(_task: object, _run: TaskRun, state: State[Any]) -> bool:
    return isinstance(state.result(raise_on_failure=False), PassingTrouble)


@task(retries=1, retry_delay_seconds=RETRY_SECONDS, retry_condition_fn=_may_pass, cache_policy=NO_CACHE)
def run_stage(stage: str, repro: Repro, share: Mapping[str, str]) -> State[None]:
    """Brings one stage up to date; its log lines go to Prefect's log.

    Args:
        stage: its name in dvc.yaml.
        repro: how it is done.
        share: what its environment says of the accelerators it may use.
    """
    lines: list[str] = []
    for command in repro.commands(stage):
        status = _follow(repro.processes.start(command, share), lines)
        if repro.processes.stopped:
            return Cancelled(message="stopped with the flow")
        if status:
            _fail(stage, lines, status)
    cached = any(text in line for line in lines for text in CACHED)
    return Completed(name="Cached") if cached else Completed()


def _follow(process: "subprocess.Popen[str]", lines: list[str]) -> int:
    """Logs the lines of a process as they come, adds them to `lines`, and returns its exit status."""
    logger = get_run_logger()
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            lines.append(without_passwords(line.rstrip()))
            if lines[-1]:
                logger.info(lines[-1])
    status = process.wait()
    _let_go(process)  # closes the pipe
    return status


@task(cache_policy=NO_CACHE)
def skip_stage() -> State[None]:
    """Stands for a stage that was up to date when the flow began, as were all that it waits for."""
    return Completed(name="Cached")


def _fail(stage: str, lines: Sequence[str], status: int) -> None:
    """Raises what the lines of a failed command tell; `status` is its own, which with `dvc` is not the stage's."""
    killed = SIGNALLED < status < DVC_FAILED
    told = (
        [line for line in lines if line.startswith(("error:", "ERROR:"))] or ["DVC was killed"] * killed or lines[-1:]
    )
    passing = killed or status == PASSING_STATUS or (status == DVC_FAILED and _dvc_may_pass(stage, lines))
    kind = PassingTrouble if passing else RuntimeError
    raise kind(f"{stage}: {' '.join(told)}")


def _dvc_may_pass(stage: str, lines: Sequence[str]) -> bool:
    """Whether DVC failed by a lock, or its stage with an exit status that may not come again.

    DVC's own last error says it, after all that the stage wrote.
    """
    errors = [number for number, line in enumerate(lines) if line.startswith("ERROR: ")]
    last = "\n".join(lines[errors[-1] :]) if errors else ""
    if last.startswith(f"ERROR: failed to reproduce '{stage}': failed to run: "):
        status = re.search(r", exited with (-?\d+)$", last, re.MULTILINE)
        return status is not None and int(status[1]) in (PASSING_STATUS, *KILLED)
    return any(text in last for text in LOCKED)


class Stages:
    """Runs the stages of a graph, within a flow run.

    Args:
        graph: name to the names it waits for, those first.
        fresh: names that need nothing.
        shares: what each of the stages that run at the same time adds to its environment.
        repro: how a stage is brought up to date.
    """

    def __init__(self, graph: Graph, fresh: set[str], shares: Sequence[Mapping[str, str]], repro: Repro) -> None:
        self._graph = graph
        self._fresh = fresh
        self._free = list(reversed(shares))
        self._repro = repro
        self._running: dict[str, PrefectConcurrentFuture[Any]] = {}
        self._taken: dict[str, Mapping[str, str]] = {}
        self._states: dict[str, State[Any]] = {}

    def run(self) -> dict[str, State[Any]]:
        """The final state of each stage; a stage whose upstream failed is not started."""
        try:
            while len(self._states) < len(self._graph):
                self._start_ready()
                self._take_ended()
        except BaseException:
            self._repro.processes.stop()
            raise
        return {stage: self._states[stage] for stage in self._graph}

    def _start_ready(self) -> None:
        for stage, upstream in self._graph.items():
            known = stage in self._states or stage in self._running
            if known or not all(name in self._states for name in upstream):
                continue
            hopeless = not all(self._states[name].is_completed() for name in upstream)
            if stage in self._fresh or hopeless:
                self._submit(stage, {})
            elif self._free:
                self._taken[stage] = self._free.pop()
                self._submit(stage, self._taken[stage])

    def _submit(self, stage: str, share: Mapping[str, str]) -> None:
        waits = [self._states[name] for name in self._graph[stage]]
        work: Task[..., State[None]] = skip_stage if stage in self._fresh else run_stage
        named = work.with_options(name=stage, task_run_name=stage)
        arguments = () if stage in self._fresh else (stage, self._repro, share)
        future = named.submit(*arguments, wait_for=waits, return_state=False)
        assert isinstance(future, PrefectConcurrentFuture)  # of the flow's task runner
        self._running[stage] = future

    def _take_ended(self) -> None:
        """Waits until a stage has ended, and gives back its share."""
        wait([future.wrapped_future for future in self._running.values()], return_when=FIRST_COMPLETED)
        for stage in [name for name, future in self._running.items() if future.wrapped_future.done()]:
            future = self._running.pop(stage)
            future.wait()
            self._states[stage] = future.state
            if stage in self._taken:
                self._free.append(self._taken.pop(stage))
