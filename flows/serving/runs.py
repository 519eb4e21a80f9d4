"""Runs of the deployments: those whose process is gone are closed, others are cancelled or ended."""

import time
from datetime import UTC, datetime

import psutil
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterName,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.states import Cancelling, Crashed

from flows.serving.workspace import holder

DEPLOYMENT = "full"
BEGUN = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]


def close_lost_runs() -> list[str]:
    """Marks the deployments' begun runs as crashed where no process runs them: they would block all later runs.

    Returns: their names.
    """
    if holder() is not None:
        return []
    with get_client(sync_client=True) as client:
        lost = _begun_runs(client)
        for run in lost:
            client.set_flow_run_state(run.id, Crashed(message="its process is gone, as after a restart"), force=True)
    return [run.name for run in lost]


def cancel_runs(seconds: float) -> list[str]:
    """Cancels the deployments' begun runs and waits so many seconds for their end; returns their names."""
    with get_client(sync_client=True) as client:
        runs = _begun_runs(client)
        for run in runs:
            client.set_flow_run_state(run.id, Cancelling(message="`make stop`"))
        end = time.monotonic() + seconds
        while _begun_runs(client) and time.monotonic() < end:
            time.sleep(0.5)
    return [run.name for run in runs]


def end_orphan(seconds: float) -> bool:
    """Ends a deployment's run that has lost its worker, and waits for its end; returns whether there was one."""
    try:
        process = psutil.Process(holder() or 0)
        if "prefect.engine" not in " ".join(process.cmdline()):
            return False
        process.terminate()
        psutil.wait_procs([process], seconds)
    except psutil.Error:
        return False
    return True


def worker_is_online(pool: str, since: datetime) -> bool:
    """Whether a worker of the pool has given a sign of life since then."""
    with get_client(sync_client=True) as client:
        path = {"work_pool_name": pool}
        workers = client.request("POST", "/work_pools/{work_pool_name}/workers/filter", path_params=path).json()
    heard = [datetime.fromisoformat(worker["last_heartbeat_time"]) for worker in workers]
    return any(time.astimezone(UTC) > since for time in heard)


def _begun_runs(client: SyncPrefectClient) -> list[FlowRun]:
    states = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=BEGUN)))
    deployment = DeploymentFilter(name=DeploymentFilterName(any_=[DEPLOYMENT]))
    return client.read_flow_runs(flow_run_filter=states, deployment_filter=deployment)
