"""Runs in MLflow. Nothing here ever raises or waits for a server: tasks.tracking.sender does the sending."""

import json
import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Concatenate, Literal, ParamSpec

from rarlhf.config.params import Params
from rarlhf.system.launch import first_process
from tasks.inputs import Inputs, description, digest
from tasks.tracking.machine import watch_system
from tasks.tracking.sender import Sender
from tasks.tracking.store import SQLITE, close_dead_runs, import_mlflow, prepare_store, process_tags, store_uri

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow.entities import Metric, Param
    from mlflow.tracking.client import MlflowClient

PIPELINE = "RARLHF_PIPELINE"  # environment variable: the folder of the pipeline run (tasks.tracking.pipeline)
PARENT_FILE = "run"  # in that folder: id of the parent run, there as soon as MLflow has given it
STAGES_FILE = "stages.jsonl"  # in that folder: a line for the start and one for the end of each stage that ran
PARENT_SECONDS = 20.0  # a stage's run waits for its parent's id, in the background
DATA_FOLDERS = ("data/raw", "data/prompts", "generations")  # inputs that are logged as data sets
REWRITTEN = ("dvc.lock", "metrics")  # in git, and written by every run
FLUSH_SECONDS = 5.0
FLUSH_METRICS = 500  # MLflow takes up to 1000 in a batch
BATCH_PARAMS = 100
COPIED_MODEL_BYTES = 10_000_000  # larger models are named by path and SHA-256; DVC keeps their bytes
MAX_VALUE = 6000  # characters of a parameter's value
PATIENCE_SERVER = 5.0
PATIENCE_FILE = 30.0  # seconds; another process may be making the store

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
        of_stage: whether it is a stage's run: below that of the pipeline and with a watch on the machine.
    """

    name: str
    tags: Mapping[str, str]
    params: Mapping[str, object] = field(default_factory=dict)
    data: Mapping[str, str] = field(default_factory=dict)
    of_stage: bool = False


def stage_record(stage: str, arguments: Mapping[str, object], params: Params, inputs: Inputs) -> Record:
    """The record of one run of a stage."""
    method = arguments.get("method", stage if stage in params.methods.start else None)
    tags = {
        "stage": stage,
        "preset": params.preset,
        "method": method,
        "seed": arguments.get("seed"),
        "inputs_hash": inputs.hash,
        "dvc_stage": os.environ.get("DVC_STAGE"),
        "pipeline": pipeline_name() or None,
        "mlflow.source.name": f"tasks.{stage}",
        "mlflow.note.content": description(stage),
    }
    data = {path: digest for path, digest in inputs.files.items() if path.startswith(DATA_FOLDERS)}
    flat = flatten(inputs.params) | {"preset": params.preset}
    return Record(
        inputs.stage, {key: str(value) for key, value in tags.items() if value is not None}, flat, data, of_stage=True
    )


def _safe(method: Callable[Concatenate["Tracker", P], None]) -> Callable[Concatenate["Tracker", P], None]:
    """Turns a failure into a warning; does nothing once the run is closed or where nothing is tracked."""

    @wraps(method)
    def call(self: "Tracker", /, *args: P.args, **kwargs: P.kwargs) -> None:
        if self.alive:
            try:
                method(self, *args, **kwargs)
            except Exception as error:
                self._sender.refuse(error)

    return call


class Tracker:
    """One run in MLflow, opened at once and ended by `close`.

    The store is `mlflow.db` with the artifacts in `mlartifacts/`, both in `root`, or what MLFLOW_TRACKING_URI says.
    Calls return at once; what they say is sent in the background, in their order.
    """

    def __init__(self, record: Record, root: Path) -> None:
        self.alive = first_process()
        self.run_id = self.experiment = ""  # known when MLflow has answered
        self._record = record
        self._start = time.time()
        self._metrics: list[Metric] = []
        self._lock = threading.Lock()
        self._flushed = time.monotonic()
        self._staged: Path | None = None
        self._monitor: Callable[[], None] | None = None
        if self.alive:
            uri = store_uri(root)
            self._sender = Sender(root / ".mlflow.down", PATIENCE_FILE if uri.startswith(SQLITE) else PATIENCE_SERVER)
            self._begin(record, root, uri)

    @_safe
    def _begin(self, record: Record, root: Path, uri: str) -> None:
        if record.of_stage:
            self._tell("RUNNING")
        import_mlflow(uri)
        self._send(lambda: self._open(record, root), needed=True)
        self.params(record.params)
        if record.of_stage:
            self._monitor = watch_system(self.metrics)
        if record.data:
            self._send(lambda: self._log_data(record.data))

    @_safe
    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Logs numbers at a step; they are sent every few seconds."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        with self._lock:
            self._metrics += [Metric(key, float(value), now, step) for key, value in values.items()]
        if len(self._metrics) >= FLUSH_METRICS or time.monotonic() - self._flushed >= FLUSH_SECONDS:
            self._flush()

    @_safe
    def params(self, values: Mapping[str, object]) -> None:
        """Logs parameters by dotted key; a key once logged keeps its value."""
        from mlflow.entities import Param

        entries = [Param(key, str(value)[:MAX_VALUE]) for key, value in values.items()]
        for start in range(0, len(entries), BATCH_PARAMS):
            batch = entries[start : start + BATCH_PARAMS]
            self._send(partial(self._log_params, batch))

    @_safe
    def tags(self, values: Mapping[str, str]) -> None:
        """Sets tags."""
        for key, value in values.items():
            self._send(partial(self._log_tag, key, value))

    @_safe
    def figure(self, figure: "Figure", path: str) -> None:
        """Keeps a figure in the format of the path's suffix, as in `figures/reward.png`."""
        file = self._stage() / Path(path).name
        figure.savefig(file)
        self._upload(file, path)

    @_safe
    def table(self, rows: Sequence[Mapping[str, object]], path: str) -> None:
        """Keeps rows as a table, shown by MLflow; the path ends in `.json`. Rows of a later call are added."""
        import pandas

        frame = pandas.DataFrame([dict(row) for row in rows])
        self._send(lambda: self._client.log_table(self.run_id, frame, path))

    @_safe
    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Keeps a copy of a file, or of a folder with all it holds, as they are now."""
        file = self._stage() / path.name
        shutil.copytree(path, file) if path.is_dir() else shutil.copy(path, file)
        self._upload(file, "/".join(filter(None, (folder, path.name))))

    @_safe
    def model(self, folder: Path) -> None:
        """Keeps where a model is, its size and SHA-256, as `model.json` and tags; a small one is copied too."""
        files = {str(file.relative_to(folder)): file.stat().st_size for file in folder.rglob("*") if file.is_file()}
        size = sum(files.values())
        reference = {"path": str(folder), "bytes": size, "sha256": digest(folder), "files": files}
        file = self._stage() / "model.json"
        file.write_text(json.dumps(reference, indent=1), encoding="utf-8")
        self._upload(file, file.name)
        self.tags({"model_path": str(folder), "model_bytes": str(size), "model_sha256": str(reference["sha256"])})
        if size <= COPIED_MODEL_BYTES:
            self.artifact(folder, "model")

    @_safe
    def child(self, name: str, tags: Mapping[str, str], metrics: Mapping[str, float]) -> None:
        """A finished run below this one, of a few numbers alone."""
        self._send(lambda: self.log_child(name, tags, metrics))

    @_safe
    def call(self, job: Callable[["MlflowClient", "Tracker"], None]) -> None:
        """Does something with MLflow's client when everything before is sent."""
        self._send(lambda: job(self._client, self))

    def wait(self, seconds: float) -> None:
        """Waits until everything so far is sent, at most for so long."""
        if self.alive:
            self._sender.wait(seconds)

    @_safe
    def close(self, status: Status) -> None:
        """Sends what is left and ends the run."""
        if self._monitor is not None:
            self._monitor()
        self._flush()
        end = int(time.time() * 1000)
        self._send(lambda: self._client.set_terminated(self.run_id, status, end))
        self._sender.finish()
        if self._record.of_stage:
            self._tell(status)
        self.alive = False
        if self._staged is not None:
            shutil.rmtree(self._staged, ignore_errors=True)

    def _send(self, job: Callable[[], object], needed: bool = False) -> None:
        self._sender.add(job, needed)

    def _open(self, record: Record, root: Path) -> None:
        self._client, self.experiment = prepare_store(root)
        close_dead_runs(self._client, self.experiment)
        tags = {**record.tags, **process_tags(), **_git_tags()}
        if record.of_stage and (parent := parent_run()):
            tags["mlflow.parentRunId"] = parent
        run = self._client.create_run(self.experiment, int(self._start * 1000), tags, record.name)
        self.run_id = run.info.run_id

    def _log_params(self, params: "Sequence[Param]") -> None:
        self._client.log_batch(self.run_id, params=params)

    def _log_tag(self, key: str, value: str) -> None:
        self._client.set_tag(self.run_id, key, value)

    def _log_data(self, data: Mapping[str, str]) -> None:
        from mlflow.entities import Dataset, DatasetInput

        inputs = [
            DatasetInput(Dataset(path, digest[:16], "local", json.dumps({"uri": path})), tags=[])
            for path, digest in data.items()
        ]
        self._client.log_inputs(self.run_id, inputs)

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

    def _stage(self) -> Path:
        """A new folder for a copy that waits to be sent; its original may be moved meanwhile."""
        if self._staged is None:
            self._staged = Path(tempfile.mkdtemp(prefix="rarlhf-artifacts-"))
        return Path(tempfile.mkdtemp(dir=self._staged))

    def _upload(self, file: Path, path: str) -> None:
        folder = Path(path).parent.as_posix()
        place = None if folder == "." else folder

        def job() -> None:
            if file.is_dir():
                self._client.log_artifacts(self.run_id, str(file), path)
            else:
                self._client.log_artifact(self.run_id, str(file), place)
            shutil.rmtree(file.parent, ignore_errors=True)

        self._send(job)

    def _tell(self, state: str) -> None:
        """Adds a line to the pipeline run's list of stages, where this is part of one."""
        folder = os.environ.get(PIPELINE)
        line = {"stage": self._record.name, "state": state, "run_id": self.run_id, "seconds": time.time() - self._start}
        if folder and Path(folder).is_dir():
            with suppress(OSError), Path(folder, STAGES_FILE).open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(line) + "\n")


def pipeline_name() -> str:
    """What the runs of one run of the pipeline have in common, as the tag `pipeline`.

    Empty where a stage was started by hand.
    """
    if folder := os.environ.get(PIPELINE):
        return Path(folder).name
    import psutil

    for process in psutil.Process().parents():
        with suppress(psutil.Error):
            if any(Path(word).name == "dvc" for word in process.cmdline()[:3]):
                return f"dvc-{datetime.fromtimestamp(process.create_time()):%Y%m%d-%H%M%S}-{process.pid}"
    return ""


def parent_run() -> str:
    """Id of the run that this one belongs below; empty where there is none."""
    folder = Path(os.environ.get(PIPELINE) or "/nonexistent")
    end = time.monotonic() + PARENT_SECONDS
    while folder.is_dir() and time.monotonic() < end:
        with suppress(OSError):
            return (folder / PARENT_FILE).read_text(encoding="utf-8").strip()
        time.sleep(0.1)
    return ""


def all_params(params: Params) -> dict[str, object]:
    """Every parameter by its dotted key."""
    return flatten(params.model_dump(mode="json"))


def flatten(values: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Nested mappings as one with dotted keys."""
    return dict(_flatten(values, prefix))


def _git_tags() -> dict[str, str]:
    """The commit, and whether tracked files differ from it except what runs rewrite; empty without git."""
    commit = _git("rev-parse", "HEAD")
    if not commit:
        return {}
    dirty = bool(_git("status", "--porcelain", "--untracked-files=no", "--", ".", *(f":!{path}" for path in REWRITTEN)))
    return {"mlflow.source.git.commit": commit, "git_commit": commit, "git_dirty": str(dirty).lower()}


def _git(*words: str) -> str:
    try:
        return subprocess.run(["git", *words], capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""


def _flatten(values: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Nested mappings as dotted keys."""
    for key, value in values.items():
        name = ".".join(filter(None, (prefix, key)))
        if isinstance(value, Mapping):
            yield from _flatten(value, name)
        else:
            yield name, value
