"""A pool of machines, as a run sees it: stages are handed to its workers, followed, and their results taken."""

import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State

from flows.machines.asked import Asked, Say, Workers
from flows.machines.request import Request
from flows.machines.server import MAY_PASS
from flows.running.processes import Processes
from flows.running.reproduce import Ended, PassingTrouble, Repro, StageError, error_of, reproduce, run_command
from flows.serving.workspace import HOME

MACHINES = 3  # that may vanish under one stage before it fails


class Pool:
    """Runs stages on a pool's machines, and all others here.

    Args:
        name: of Prefect's work pool.
        remote: of DVC, through which inputs and results go.
        queue: of the pool, for every stage.
        stages: those that run on the pool's machines.
    """

    def __init__(self, name: str, remote: str, queue: str, stages: Collection[str]) -> None:
        self._remote = remote
        self._queue = queue
        self._stages = frozenset(stages)
        self._workers = Workers(name)

    def bring(self, stage: str, repro: Repro, say: Say) -> Ended:
        """Brings one stage up to date, on a machine of the pool if it is one for those; returns how it ended.

        Args and errors as those of `reproduce`.
        """
        if stage not in self._stages:
            return reproduce(stage, repro, say)
        file = Path(HOME, "asked", f"{stage}.json")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.unlink(missing_ok=True)
        self._results(stage, repro, say, ["ask", self._remote, stage, str(file), *["--force"] * repro.force])
        if repro.processes.stopped:
            return Ended.CANCELLED
        if not file.exists():
            return Ended.CACHED
        request = Request.model_validate_json(file.read_text(encoding="utf-8"))
        file.unlink()
        state = self._elsewhere(request, repro.processes, say)
        if state is None:
            return Ended.CANCELLED
        self._results(stage, repro, say, ["take", self._remote, stage])
        return Ended.CANCELLED if repro.processes.stopped else Ended(state.name or Ended.COMPLETED)

    def _results(self, stage: str, repro: Repro, say: Say, words: list[str]) -> None:
        """Runs flows.machines.results."""
        lines: list[str] = []
        if repro.processes.stopped:
            return
        command = [sys.executable, "-m", "flows.machines.results", *words]
        status = run_command(command, repro.processes, {}, lines, say)
        if status and not repro.processes.stopped:
            raise error_of(stage, lines, status)

    def _elsewhere(self, request: Request, processes: Processes, say: Say) -> State[Any] | None:
        """Has the stage run on a machine; returns its completed state, or None if it was stopped with the whole.

        A machine that vanishes is replaced by another, on which the stage starts again.
        """
        vanished = 0
        with get_client(sync_client=True) as client:
            while not processes.stopped:
                asked = Asked(request, self._queue, self._workers, client, say)
                state = asked.ended(processes)
                if state is None or state.is_completed():
                    return state
                if state.is_cancelled() and not asked.own:
                    say("the other run has cancelled it; asking again")
                    continue
                vanished += state.is_crashed()
                if not state.is_crashed() or vanished == MACHINES:
                    trouble = PassingTrouble if state.is_crashed() or state.name == MAY_PASS else StageError
                    raise trouble(request.stage, [str(state.message or state.name)])
                say(f"its machine vanished ({state.message}); it starts again on another")
        return None
