"""One run in MLflow. Nothing here raises or waits for a server: tasks.tracking.sender sends in the background."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from tasks.tracking.artifacts import Uploads, safe, upload
from tasks.tracking.commit import git_tags
from tasks.tracking.datasets import DataSource, dataset_input
from tasks.tracking.models import ModelCopy, register
from tasks.tracking.parent import parent_run, tell_stage
from tasks.tracking.record import RunRecord
from tasks.tracking.results import log_result, model_results
from tasks.tracking.sender import Sender
from tasks.tracking.store import SQLITE, close_dead_runs, import_mlflow, prepare_store, process_tags, store_uri

if TYPE_CHECKING:
    from mlflow.entities import Metric, Param
    from mlflow.tracking.client import MlflowClient

    from rarlhf.evaluation.comparisons import Evaluation
    from tasks.tracking.machine import MachineMonitor

FLUSH_SECONDS = 5.0
FLUSH_METRICS = 500  # MLflow takes up to 1000 in a batch
BATCH_PARAMS = 100
MAX_VALUE = 6000  # characters of a parameter's value
PATIENCE_SERVER = 5.0
PATIENCE_FILE = 30.0  # seconds; another process may be making the store

Status = Literal["FINISHED", "FAILED", "KILLED"]


class Owner(NamedTuple):
    """The process that a run is of."""

    tags: Mapping[str, str]  # from `process_tags`
    begun: float  # epoch seconds


class Tracker(Uploads):
    """One run in MLflow, opened at once and ended by `close`.

    The store is `mlflow.db` with the artifacts in `mlartifacts/`, both in `root`, or what MLFLOW_TRACKING_URI says.
    Calls return at once; what they say is sent in the background, in their order.

    Args:
        record: what is known at the start.
        root: of the repository.
        owner: the process that the run is of, where that is another one.
    """

    def __init__(self, record: RunRecord, root: Path, owner: Owner | None = None) -> None:
        super().__init__(root)
        self.run_id = self.experiment = ""  # known when MLflow has answered
        self._record = record
        self._owner = owner or Owner(process_tags(), time.time())
        self._metrics: list[Metric] = []
        self._lock = threading.Lock()
        self._flushed = time.monotonic()
        self._machine: MachineMonitor | None = None
        if self.alive:
            uri = store_uri(root)
            self._sender = Sender(root / ".mlflow.down", PATIENCE_FILE if uri.startswith(SQLITE) else PATIENCE_SERVER)
            self._begin(record, root, uri)

    @safe
    def _begin(self, record: RunRecord, root: Path, uri: str) -> None:
        if record.stage:
            self._tell("RUNNING")
        import_mlflow(uri)
        self._send(lambda: self._open(record, root), needed=True)
        self.params(record.params)
        if record.stage:
            self._send(lambda: self._watch_machine(uri))
        if record.data:
            self._send(lambda: self._log_data(record.data))

    @safe
    def metrics(self, values: Mapping[str, float], step: int = 0, at: float | None = None) -> None:
        """Logs numbers at a step and a time (epoch seconds; None: now); they are sent every few seconds."""
        from mlflow.entities import Metric

        now = int((at or time.time()) * 1000)
        with self._lock:
            self._metrics += [Metric(key, float(value), now, step) for key, value in values.items()]
        if len(self._metrics) >= FLUSH_METRICS or time.monotonic() - self._flushed >= FLUSH_SECONDS:
            self._flush()

    @safe
    def params(self, values: Mapping[str, object]) -> None:
        """Logs parameters by dotted key; a key once logged keeps its value."""
        from mlflow.entities import Param

        entries = [Param(key, str(value)[:MAX_VALUE]) for key, value in values.items()]
        for start in range(0, len(entries), BATCH_PARAMS):
            batch = entries[start : start + BATCH_PARAMS]
            self._send(partial(self._log_params, batch))

    @safe
    def tags(self, values: Mapping[str, str]) -> None:
        """Sets tags."""
        for key, value in values.items():
            self._send(partial(self._log_tag, key, value))

    @safe
    def table(self, rows: Sequence[Mapping[str, object]], path: str) -> None:
        """Keeps rows as a table, shown by MLflow; the path ends in `.json`. Rows of a later call are added."""
        import pandas

        frame = pandas.DataFrame([dict(row) for row in rows])
        self._send(lambda: self._client.log_table(self.run_id, frame, path))

    @safe
    def upload(self, copy: Path, path: str) -> None:
        """Sends a copy to the run's artifacts, as `path` there, and deletes it."""
        self._send(lambda: upload(self._client, self.run_id, copy, path))

    @safe
    def register(self, copy: ModelCopy) -> None:
        """Registers a model that is copied already."""
        self.tags(copy.tags)
        self._send(lambda: register(self._client, self.run_id, self.experiment, self._tags, copy))

    @safe
    def results(self, evaluation: "Evaluation", models: Path) -> None:
        """Logs test results to the models that they are of, and to the runs that trained these."""
        for folder, values in model_results(evaluation, models):
            self._send(partial(self._log_result, evaluation["preset"], folder, values))

    @safe
    def child(self, name: str, tags: Mapping[str, str], metrics: Mapping[str, float]) -> None:
        """A finished run below this one, of a few numbers alone."""
        self._send(lambda: self.log_child(name, tags, metrics))

    @safe
    def call(self, job: Callable[["MlflowClient", "Tracker"], None]) -> None:
        """Does something with MLflow's client when everything before is sent."""
        self._send(lambda: job(self._client, self))

    def wait(self, seconds: float) -> None:
        """Waits until everything so far is sent, at most for so long."""
        if self.alive:
            self._sender.wait(seconds)

    def refuse(self, error: Exception) -> None:
        """Prints one line, once, that something is left out."""
        self._sender.refuse(error)

    @safe
    def close(self, status: Status, at: float | None = None) -> None:
        """Sends what is left and ends the run, as of a time (epoch seconds; None: now)."""
        self._flush()
        end = int((at or time.time()) * 1000)
        self._send(self._leave_machine)
        self._send(lambda: self._client.set_terminated(self.run_id, status, end))
        self._sender.finish()
        if self._record.stage:
            self._tell(status)
        self.alive = False
        self._copies.delete()

    def _send(self, job: Callable[[], object], needed: bool = False) -> None:
        self._sender.add(job, needed)

    def _open(self, record: RunRecord, root: Path) -> None:
        self._client, self.experiment = prepare_store(root)
        close_dead_runs(self._client, self.experiment)
        self._tags = {**record.tags, **git_tags()}
        tags = {**self._tags, **self._owner.tags}
        if record.stage and (parent := parent_run()):
            tags["mlflow.parentRunId"] = parent
        run = self._client.create_run(self.experiment, int(self._owner.begun * 1000), tags, record.name)
        self.run_id = run.info.run_id

    def _log_params(self, params: "Sequence[Param]") -> None:
        self._client.log_batch(self.run_id, params=params)

    def _log_tag(self, key: str, value: str) -> None:
        self._client.set_tag(self.run_id, key, value)

    def _log_data(self, data: Sequence[DataSource]) -> None:
        self._client.log_inputs(self.run_id, [dataset_input(source) for source in data])

    def _log_result(self, preset: str, folder: Path, values: Mapping[str, float]) -> None:
        log_result(self._client, preset, folder, values, self._in_workspace)

    def log_child(self, name: str, tags: Mapping[str, str], metrics: Mapping[str, float]) -> None:
        """As `child`, at once: for jobs of `call`."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        below = {**tags, "mlflow.parentRunId": self.run_id}
        child = self._client.create_run(self.experiment, now, below, name).info.run_id
        self._client.log_batch(child, [Metric(key, value, now, 0) for key, value in metrics.items()])
        self._client.set_terminated(child, "FINISHED", now)

    def _flush(self) -> None:
        with self._lock:
            metrics, self._metrics = self._metrics, []
        self._flushed = time.monotonic()
        if metrics:
            self._send(lambda: self._client.log_batch(self.run_id, metrics=metrics))

    def _watch_machine(self, uri: str) -> None:
        """Lets MLflow log what the stage uses of the machine; its thread ends where the store does not answer it.

        The sender's thread starts and ends it: both may wait for the store.
        """
        from mlflow.environment_variables import MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING

        from tasks.tracking.machine import MachineMonitor

        if MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING.get():
            self._machine = MachineMonitor(self.run_id, uri)
            self._machine.start()

    def _leave_machine(self) -> None:
        machine, self._machine = self._machine, None  # a second try would log a later moment
        if machine is not None:
            machine.finish()

    def _tell(self, state: str) -> None:
        seconds = time.time() - self._owner.begun
        tell_stage({"stage": self._record.stage, "state": state, "run_id": self.run_id, "seconds": seconds})
