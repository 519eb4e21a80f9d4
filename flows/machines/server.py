"""What Prefect's server knows of a pool: its queues, its deployment, and which of its workers are online."""

from contextlib import suppress

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import WorkerFilter, WorkerFilterStatus
from prefect.client.schemas.objects import WorkerStatus, WorkQueueStatus
from prefect.exceptions import ObjectAlreadyExists

from rarlhf.config.errors import UserError

FLOW = "rarlhf-stage"
CLONE = "RARLHF_CLONE"  # the environment variable that names the clone of the worker that runs a stage
MAY_PASS = "MayPass"  # the name of a failed stage's state where another try may succeed
CPU, GPU = "cpu", "gpu"  # queues of every pool
PROCESS = "process"  # the type of a pool whose workers start processes on their own machine


def said_of(stage: str) -> str:
    """How the lines begin that a machine's run says of its stage, besides Prefect's own."""
    return f"{stage}: "


def ensure(pool: str) -> None:
    """Makes a pool with its queues and its deployment, where they are missing.

    Raises: UserError if there is a pool of that name and another type.
    """
    from prefect.workers.process import ProcessWorker

    with get_client(sync_client=True) as client:
        template = ProcessWorker.get_default_base_job_template()
        with suppress(ObjectAlreadyExists):
            client.create_work_pool(WorkPoolCreate(name=pool, type=PROCESS, base_job_template=template))
        if (kind := client.read_work_pool(pool).type) != PROCESS:
            raise UserError(f"pool {pool} is of type {kind}, expected {PROCESS}: choose another name")
        for queue in (CPU, GPU):
            with suppress(ObjectAlreadyExists):
                client.create_work_queue(queue, work_pool_name=pool)
        client.create_deployment(
            client.create_flow_from_name(FLOW),
            pool,
            description="One stage for a run elsewhere; flows.machines.worker starts the workers.",
            work_pool_name=pool,
            work_queue_name=CPU,
            entrypoint="flows.machines.stage.rarlhf_stage",
            # The worker fills the variable in, so that every machine stands in its own clone.
            pull_steps=[{"prefect.deployments.steps.set_working_directory": {"directory": f"{{{{ ${CLONE} }}}}"}}],
            # With a command of its own, Prefect starts one process for a stage; else two more, to find the code.
            job_variables={"command": "python -m prefect.engine", "stream_output": False},
        )


def online(client: SyncPrefectClient, pool: str) -> set[str]:
    """Names of a pool's workers that have given a sign of life within three of their intervals."""
    recent = WorkerFilter(status=WorkerFilterStatus(any_=[WorkerStatus.ONLINE.value]))
    workers = client.read_workers_for_work_pool(pool, recent)
    return {worker.name for worker in workers if worker.status is WorkerStatus.ONLINE}


def queue_for(device: str, pool: str) -> str:
    """The queue of stages on a device: `auto` takes accelerators if a worker has asked for such stages lately.

    Args:
        device: cpu, cuda or auto, as in `runtime.device`.
        pool: its name.
    """
    if device != "auto":
        return CPU if device == "cpu" else GPU
    with get_client(sync_client=True) as client:
        status = client.read_work_queue_by_name(GPU, work_pool_name=pool).status
    return GPU if status is WorkQueueStatus.READY else CPU
