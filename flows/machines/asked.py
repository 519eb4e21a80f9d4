"""One request on Prefect's server: its flow run is submitted, followed, and cancelled with the run that asked."""

import time
from collections.abc import Callable
from threading import Lock
from typing import Any, cast
from uuid import uuid4

import httpx
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterTags, LogFilter, LogFilterFlowRunId
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.sorting import LogSort
from prefect.deployments import run_deployment
from prefect.states import Cancelling, Crashed

from flows.machines.request import Request
from flows.machines.server import FLOW, online, said_of
from flows.running.guard import STOP_SECONDS
from flows.running.processes import Processes
from tasks.inputs import title_of

POLL_SECONDS = 2.0  # between two looks at a stage
ONLINE_SECONDS = 5.0  # for which a list of workers counts
BUSY = 500  # HTTP statuses from here on may pass: Prefect's server answers 503 where its database is locked
WORKER = "prefect.worker.name"  # the label by which Prefect tells who runs a flow
Say = Callable[[str], object]


class Workers:
    """The workers of a pool that are online; asked for by many threads.

    Args:
        pool: its name.
    """

    def __init__(self, pool: str) -> None:
        self.pool = pool
        self._lock = Lock()
        self._online: set[str] = set()
        self._asked = float("-inf")

    def online(self, client: SyncPrefectClient) -> set[str]:
        """Their names, not older than ONLINE_SECONDS."""
        with self._lock:
            if time.monotonic() - self._asked > ONLINE_SECONDS:
                self._online = online(client, self.pool)
                self._asked = time.monotonic()
            return self._online


class Asked:
    """A request that was handed to a pool.

    Of two runs that ask for the same, one hands it over and the other waits for its result too.

    Attributes:
        own: whether this run has handed it over.

    Args:
        request: a stage.
        queue: of the pool.
        workers: of the pool.
        client: of Prefect's server.
        say: is given each line.
    """

    def __init__(self, request: Request, queue: str, workers: Workers, client: SyncPrefectClient, say: Say) -> None:
        self.own = True
        self._request = request
        self._queue = queue
        self._workers = workers
        self._client = client
        self._say = say
        self._by = f"by:{uuid4()}"  # a tag that tells this run's from another's
        self._mark = said_of(request.stage)
        self._lines = 0  # of its log that were read
        self._run: FlowRun | None = None

    def ended(self, processes: Processes) -> State[Any] | None:
        """Hands it over and its lines on until it ends; returns its last state, or None if the run that asks stopped.

        A machine counts as vanished when its worker gives no sign of life. While the server does not answer, it waits.
        """
        while not processes.stopped:
            try:
                if self._run is None:
                    self._run = self._handed_over()
                elif (state := self._look(self._run)) is not None:
                    return state
            except httpx.HTTPError as error:
                if isinstance(error, httpx.HTTPStatusError) and error.response.status_code < BUSY:
                    raise
                self._say(f"Prefect's server does not answer ({type(error).__name__}); trying again")
            processes.wait(POLL_SECONDS)
        if self._run is not None and self.own:
            self._cancel(self._run)
        return None

    def _handed_over(self) -> FlowRun:
        """The flow run of the same request that goes on, or a new one."""
        tag = f"asked:{self._request.digest}"
        earlier = self._client.read_flow_runs(flow_run_filter=FlowRunFilter(tags=FlowRunFilterTags(all_=[tag])))
        begun = next((run for run in earlier if _goes_on(run)), None)
        run = begun or self._submitted(tag, max((str(run.id) for run in earlier), default="none"))
        self.own = self._by in run.tags
        if not self.own:
            self._say("another run has asked for the same; waiting for its result")
        return run

    def _submitted(self, tag: str, last: str) -> FlowRun:
        pool = self._workers.pool
        if not self._workers.online(self._client):
            self._say(f"no worker of pool {pool} is online; it waits for one (python -m flows.machines.worker)")
        submitted = run_deployment(
            f"{FLOW}/{pool}",
            parameters={"request": self._request.model_dump()},
            flow_run_name=title_of(self._request.stage),
            timeout=0,
            tags=[tag, self._by],
            # Of two that hand it over at the same moment, the second gets the first's run.
            idempotency_key=f"{self._request.digest} after {last}",
            work_queue_name=self._queue,
        )
        return cast(FlowRun, submitted)  # where no coroutine calls it, it is none

    def _look(self, handed: FlowRun) -> State[Any] | None:
        """Hands on new lines; returns the state if it is the last."""
        run = self._client.read_flow_run(handed.id)
        self._tell(run)
        if run.state is not None and run.state.is_final():
            return run.state
        worker = run.labels.get(WORKER)
        if worker is not None and worker not in self._workers.online(self._client):
            gone: State[Any] = Crashed(message=f"worker {worker} gives no sign of life")
            self._client.set_flow_run_state(run.id, gone, force=True)
            return gone
        return None

    def _tell(self, run: FlowRun) -> None:
        """Hands on the lines of its log that were not read before, without Prefect's own."""
        of_run = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run.id]))
        logs = self._client.read_logs(of_run, offset=self._lines, sort=LogSort.TIMESTAMP_ASC)
        self._lines += len(logs)
        for log in logs:
            if log.message.startswith(self._mark):
                self._say(log.message.removeprefix(self._mark))

    def _cancel(self, run: FlowRun) -> None:
        """Cancels it, and waits until its stage has saved and ended."""
        self._client.set_flow_run_state(run.id, Cancelling(message="the run that asked was stopped"))
        end = time.monotonic() + STOP_SECONDS
        while _goes_on(self._client.read_flow_run(run.id), StateType.CANCELLING) and time.monotonic() < end:
            time.sleep(0.5)


def _goes_on(run: FlowRun, *besides: StateType) -> bool:
    """Whether a flow run has not ended; one that is being cancelled has, unless its state is among the other ones."""
    if run.state is None:
        return True
    return run.state.type in besides or not (run.state.is_final() or run.state.is_cancelling())
