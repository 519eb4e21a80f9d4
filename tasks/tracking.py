"""Runs in MLflow. Nothing here ever raises: the first failure gives one warning, and the rest is silence."""

import json
import logging
import os
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Concatenate, Literal, ParamSpec

from rarlhf.launch import first_process
from rarlhf.params import Params
from tasks.inputs import Inputs

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow.entities import Metric
    from mlflow.tracking.client import MlflowClient

EXPERIMENT = "rarlhf"
PARENT_RUN = "RARLHF_PARENT_RUN"  # environment variable by which a pipeline run hands its id to its stages
DATA_FOLDERS = ("data/raw", "data/prompts", "generations")  # inputs that are logged as data sets
FLUSH_SECONDS = 5.0
FLUSH_METRICS = 500  # MLflow takes up to 1000 in a batch
BATCH_PARAMS = 100
MAX_VALUE = 6000  # characters of a parameter's value
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",  # the word: MLflow ignores 1
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}

Status = Literal["FINISHED", "FAILED", "KILLED"]
P = ParamSpec("P")


@dataclass(frozen=True)
class Record:
    """What a run is called and said to be.

    Attributes:
        name: shown in the list of runs.
        tags: name to value.
        params: dotted key to value.
        data: path of each input data set to its SHA-256.
    """

    name: str
    tags: Mapping[str, str]
    params: Mapping[str, object] = field(default_factory=dict)
    data: Mapping[str, str] = field(default_factory=dict)


def stage_record(stage: str, arguments: Mapping[str, object], params: Params, inputs: Inputs) -> Record:
    """The record of one run of a stage."""
    method = arguments.get("method", stage if stage in params.methods else None)
    tags = {
        "stage": stage,
        "preset": params.preset,
        "method": method,
        "seed": arguments.get("seed"),
        "inputs_hash": inputs.hash,
        "dvc_stage": os.environ.get("DVC_STAGE"),
        "pipeline": os.environ.get(PARENT_RUN),
        "mlflow.parentRunId": os.environ.get(PARENT_RUN),
        "mlflow.source.name": f"tasks.{stage}",
    }
    data = {path: digest for path, digest in inputs.files.items() if path.startswith(DATA_FOLDERS)}
    flat = dict(_flatten(inputs.params)) | {"preset": params.preset}
    return Record(inputs.stage, {key: str(value) for key, value in tags.items() if value is not None}, flat, data)


def _safe(method: Callable[Concatenate["Tracker", P], None]) -> Callable[Concatenate["Tracker", P], None]:
    """Turns the first failure into a warning and drops every call after it."""

    @wraps(method)
    def call(self: "Tracker", /, *args: P.args, **kwargs: P.kwargs) -> None:
        if self.alive:
            try:
                method(self, *args, **kwargs)
            except Exception as error:
                self.give_up(error)

    return call


class Tracker:
    """One run in MLflow, opened at once and ended by `close`.

    The store is `mlflow.db` with the artifacts in `mlartifacts/`, both in `root`, or what MLFLOW_TRACKING_URI says.
    """

    def __init__(self, record: Record, root: Path) -> None:
        self.alive = first_process()
        self.run_id = ""
        self._metrics: list[Metric] = []
        self._open(record, root)
        self._flushed = time.monotonic()

    def give_up(self, error: Exception) -> None:
        """Stops tracking, saying why in one line."""
        self.alive = False
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        print(f"warning: MLflow tracking stops here, nothing else is affected: {reason}", file=sys.stderr, flush=True)

    @_safe
    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Logs numbers at a step; they are sent every few seconds."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._metrics += [Metric(key, float(value), now, step) for key, value in values.items()]
        if len(self._metrics) >= FLUSH_METRICS or time.monotonic() - self._flushed >= FLUSH_SECONDS:
            self._flush()

    @_safe
    def tags(self, values: Mapping[str, str]) -> None:
        """Sets tags."""
        for key, value in values.items():
            self._client.set_tag(self.run_id, key, value)

    @_safe
    def figure(self, figure: "Figure", path: str) -> None:
        """Keeps a figure in the format of the path's suffix, as in `figures/reward.png`."""
        self._client.log_figure(self.run_id, figure, path)

    @_safe
    def table(self, rows: Sequence[Mapping[str, object]], path: str) -> None:
        """Keeps rows as a table, shown by MLflow; the path ends in `.json`."""
        import pandas

        self._client.log_table(self.run_id, pandas.DataFrame([dict(row) for row in rows]), path)

    @_safe
    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Keeps a copy of a file, or of a folder with all it holds."""
        if path.is_dir():
            self._client.log_artifacts(self.run_id, str(path), "/".join(filter(None, (folder, path.name))))
        else:
            self._client.log_artifact(self.run_id, str(path), folder)

    @_safe
    def close(self, status: Status) -> None:
        """Sends what is left and ends the run."""
        self._flush()
        self._client.set_terminated(self.run_id, status)
        self.alive = False

    @_safe
    def _open(self, record: Record, root: Path) -> None:
        self._client, experiment = prepare_store(root)
        _close_dead_runs(self._client, experiment)
        tags = {**record.tags, **_process_tags(), **_git_tags()}
        self.run_id = self._client.create_run(experiment, run_name=record.name, tags=tags).info.run_id
        self._log_params(record.params)
        self._log_data(record.data)

    def _log_params(self, params: Mapping[str, object]) -> None:
        from mlflow.entities import Param

        entries = [Param(key, str(value)[:MAX_VALUE]) for key, value in params.items()]
        for start in range(0, len(entries), BATCH_PARAMS):
            self._client.log_batch(self.run_id, params=entries[start : start + BATCH_PARAMS])

    def _log_data(self, data: Mapping[str, str]) -> None:
        from mlflow.entities import Dataset, DatasetInput

        inputs = [
            DatasetInput(Dataset(path, digest[:16], "local", json.dumps({"uri": path})), tags=[])
            for path, digest in data.items()
        ]
        if inputs:
            self._client.log_inputs(self.run_id, inputs)

    def _flush(self) -> None:
        if self._metrics:
            self._client.log_batch(self.run_id, metrics=self._metrics)
        self._metrics = []
        self._flushed = time.monotonic()


def prepare_store(root: Path) -> tuple["MlflowClient", str]:
    """Opens the store, making it and its experiment if missing; returns a client and the experiment's id."""
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    with _locked(root / ".mlflow.lock"):  # two processes that open a fresh store at once break it
        client = _connect(root)
        return client, _experiment(client, root)


def _connect(root: Path) -> "MlflowClient":
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root}/mlflow.db"
    if uri.startswith("sqlite:///"):
        with sqlite3.connect(uri.removeprefix("sqlite:///")) as store:
            store.execute("PRAGMA journal_mode=WAL")  # readers do not block writers; 13 ms a logged step become 5
        store.close()
    from mlflow.tracking.client import MlflowClient

    for name in ("mlflow", "alembic", "urllib3"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # the one warning is ours
    return MlflowClient(uri)


def _experiment(client: "MlflowClient", root: Path) -> str:
    found = client.get_experiment_by_name(EXPERIMENT)
    if found is not None:
        return str(found.experiment_id)
    artifacts = None if os.environ.get("MLFLOW_TRACKING_URI") else (root / "mlartifacts").as_uri()
    kind = {"mlflow.experimentKind": "custom_model_development"}  # opens on the runs, not on the pages for chat traces
    return client.create_experiment(EXPERIMENT, artifacts, kind)


def _close_dead_runs(client: "MlflowClient", experiment: str) -> None:
    """Ends as KILLED the runs whose process on this machine is gone: kill -9 leaves them RUNNING for ever."""
    mine = f"attributes.status = 'RUNNING' and tags.host = '{socket.gethostname()}'"
    for run in client.search_runs([experiment], mine):
        if not _is_alive(int(run.data.tags["pid"]), float(run.data.tags["process_start"])):
            client.set_terminated(run.info.run_id, "KILLED")


def _is_alive(pid: int, start: float) -> bool:
    """Whether a process exists and is the one that started then (epoch seconds), not a later one under its number."""
    import psutil

    try:
        return bool(abs(psutil.Process(pid).create_time() - start) < 1)
    except psutil.NoSuchProcess:
        return False


def _process_tags() -> dict[str, str]:
    import psutil

    pid = os.getpid()
    return {"host": socket.gethostname(), "pid": str(pid), "process_start": str(psutil.Process(pid).create_time())}


def _git_tags() -> dict[str, str]:
    """The commit, and whether tracked files differ from it except dvc.lock, which runs rewrite; empty without git."""
    commit = _git("rev-parse", "HEAD")
    if not commit:
        return {}
    dirty = bool(_git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!dvc.lock"))
    return {"mlflow.source.git.commit": commit, "git_commit": commit, "git_dirty": str(dirty).lower()}


def _git(*words: str) -> str:
    try:
        return subprocess.run(["git", *words], capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    import fcntl

    with path.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _flatten(values: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Nested mappings as dotted keys."""
    for key, value in values.items():
        name = ".".join(filter(None, (prefix, key)))
        if isinstance(value, Mapping):
            yield from _flatten(value, name)
        else:
            yield name, value
