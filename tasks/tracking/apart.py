"""A stage's run in MLflow, tracked by a process of its own: a stage neither imports MLflow nor waits while it starts.

tasks.tracking.workers says which process that is. Each call is a line of JSON.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.tracking.artifacts import Uploads, safe
from tasks.tracking.models import ModelCopy
from tasks.tracking.parent import tell_stage
from tasks.tracking.record import RunRecord
from tasks.tracking.sender import warn_incomplete
from tasks.tracking.store import process_tags
from tasks.tracking.tracker import Status
from tasks.tracking.workers import start_worker

if TYPE_CHECKING:
    from rarlhf.evaluation.comparisons import Evaluation


class StageTracker(Uploads):
    """One run in MLflow, as `Tracker`, but tracked by another process. Nothing here raises.

    The process ends by itself when the run is closed. Where the stage is killed, it closes the run as KILLED.

    Args:
        record: what is known at the start.
        root: of the repository.
    """

    def __init__(self, record: RunRecord, root: Path) -> None:
        super().__init__(root)
        self._refused = False
        try:
            self._begin(record, root)
        except OSError as error:
            self.refuse(error)
            self.alive = False

    def _begin(self, record: RunRecord, root: Path) -> None:
        if not self.alive:
            return
        begun = time.time()
        tell_stage({"stage": record.stage, "state": "RUNNING", "run_id": "", "seconds": 0.0})
        self._worker = start_worker()
        self._do(
            "begin",
            record=asdict(record),
            root=str(root),
            cwd=str(Path.cwd()),
            owner={"tags": process_tags(), "begun": begun},
        )

    @safe
    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Logs numbers at a step."""
        self._do("metrics", values={key: float(value) for key, value in values.items()}, step=step, at=time.time())

    @safe
    def params(self, values: Mapping[str, object]) -> None:
        """Logs parameters by dotted key; a key once logged keeps its value."""
        self._do("params", values={key: str(value) for key, value in values.items()})

    @safe
    def table(self, rows: Sequence[Mapping[str, object]], path: str) -> None:
        """Keeps rows as a table, shown by MLflow; the path ends in `.json`. Rows of a later call are added."""
        self._do("table", rows=[dict(row) for row in rows], path=path)

    @safe
    def results(self, evaluation: "Evaluation", models: Path) -> None:
        """Logs test results to the models that they are of, and to the runs that trained these."""
        self._do("results", evaluation=evaluation, models=str(models))

    @safe
    def child(self, name: str, tags: Mapping[str, str], metrics: Mapping[str, float]) -> None:
        """A finished run below this one, of a few numbers alone."""
        self._do("child", name=name, tags=dict(tags), metrics=dict(metrics))

    @safe
    def upload(self, copy: Path, path: str) -> None:
        """Sends a copy to the run's artifacts, as `path` there, and deletes it."""
        self._do("upload", copy=str(copy), path=path)

    @safe
    def register(self, copy: ModelCopy) -> None:
        """Registers a model that is copied already."""
        self._do("register", copy=asdict(copy) | {"place": str(copy.place), "folder": str(copy.folder)})

    @safe
    def wait(self, seconds: float) -> None:
        """Waits until everything so far is sent, at most for so long."""
        self._do("wait", seconds=seconds)
        self._worker.answered(seconds)

    @safe
    def close(self, status: Status) -> None:
        """Ends the run, and waits until all is sent or cannot be."""
        try:
            self._do("close", status=status, at=time.time())
        finally:
            self.alive = False
            self._worker.end()
            self._copies.delete()

    def refuse(self, error: Exception) -> None:
        """Prints one line, once, that something is left out."""
        if not self._refused:
            warn_incomplete(error)
        self._refused = True

    def _do(self, call: str, /, **arguments: object) -> None:
        self._worker.write(json.dumps({"do": call, **arguments}))
