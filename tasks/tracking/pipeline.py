"""The run in MLflow of one run of the pipeline, above those of its stages; for the flow and for `make repro`."""

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rarlhf.config.params import Params
from tasks.inputs import digest, inputs_of
from tasks.tracking.run import PARENT_FILE, PIPELINE, STAGES_FILE, Record, Status, Tracker, all_params
from tasks.tracking.store import close_dead_runs

if TYPE_CHECKING:
    from mlflow.tracking.client import MlflowClient

SUMMARY = Path("metrics/summary.json")
CACHED, UNKNOWN = "Cached", "Unknown"
STATES = {"FINISHED": "Completed", "FAILED": "Failed", "KILLED": "Killed", "RUNNING": "Killed"}  # of a stage's run


@dataclass
class Row:
    """A stage in the table of a pipeline run."""

    stage: str
    state: str
    seconds: float | None = None
    run_id: str = ""


class Pipeline:
    """One run of the pipeline. Until `open` nothing is tracked; nothing here raises or waits for a server.

    Attributes:
        folder: by which the stages' processes find it, named in the environment variable RARLHF_PIPELINE.
    """

    def __init__(self, door: str, folder: Path, root: Path) -> None:
        self.folder = folder
        self._door = door
        self._root = root
        self._tracker: Tracker | None = None
        self._rows: dict[str, Row] = {}
        self._digest = cache(digest)  # many stages share an input

    def open(self, params: Params) -> None:
        """Starts the run, with all parameters."""
        tags = {
            "stage": "pipeline",
            "preset": params.preset,
            "pipeline": self.folder.name,
            "mlflow.source.name": self._door,
        }
        self._params = params
        self._tracker = Tracker(Record(f"pipeline {params.preset}", tags, all_params(params)), self._root)
        self._tracker.call(self._publish)

    @property
    def run_id(self) -> str:
        """Id of the run; empty where MLflow has not answered."""
        return self._tracker.run_id if self._tracker else ""

    @property
    def experiment(self) -> str:
        """Id of the run's experiment; empty where MLflow has not answered."""
        return self._tracker.experiment if self._tracker else ""

    def wait(self, seconds: float) -> None:
        """Waits until MLflow has answered, at most for so long."""
        if self._tracker:
            self._tracker.wait(seconds)

    def stage(self, name: str, state: str, seconds: float | None = None) -> None:
        """Tells how a stage ended: `Cached` makes a light run of its own, the others have theirs.

        Args:
            name: of the stage, as in `ppo@rlhf-1`.
            state: any word, shown in the table; `Unknown`: `Cached` if a run with the same inputs is there, else
                `NotRun`.
            seconds: it took; None: as long as its run.
        """
        self._rows[name] = Row(name, state, seconds)
        if state in (CACHED, UNKNOWN) and self._tracker:
            inputs_hash = self._inputs_hash(name)
            self._tracker.call(lambda client, tracker: self._record_cached(client, tracker, name, inputs_hash))

    def ran(self) -> Mapping[str, str]:
        """State of each stage whose process started, as it told itself; one that told no end is `Killed`."""
        return {name: STATES[line["state"]] for name, line in self._told().items()}

    def close(self, status: Status) -> None:
        """Writes the table of stages and the summary of the results, and ends the run."""
        if not self._tracker:
            return
        for name, line in self._told().items():
            row = self._rows.setdefault(name, Row(name, STATES[line["state"]]))
            row.run_id = line["run_id"]
            row.seconds = line["seconds"] if row.seconds is None and line["state"] != "RUNNING" else row.seconds
        if status == "FINISHED":
            self._tracker.metrics(_summary())
        self._tracker.metrics(self._counts())
        self._tracker.call(self._log_table)
        self._tracker.close(status)
        self._tracker = None

    def _publish(self, client: "MlflowClient", tracker: Tracker) -> None:
        """Hands the id to the stages' processes."""
        partial = self.folder / "run.partial"
        if self.folder.is_dir():
            partial.write_text(tracker.run_id, encoding="utf-8")
            partial.replace(self.folder / PARENT_FILE)

    def _record_cached(self, client: "MlflowClient", tracker: Tracker, name: str, inputs_hash: str) -> None:
        row = self._rows[name]
        wanted = f"tags.inputs_hash = '{inputs_hash}' and attributes.status = 'FINISHED'"
        found = client.search_runs([tracker.experiment], wanted, max_results=1) if inputs_hash else []
        tags = {"stage": name.partition("@")[0], "pipeline": self.folder.name, "cached": "true"}
        for run in found:
            row.run_id = run.info.run_id
            link = f"[the run that made it](#/experiments/{tracker.experiment}/runs/{row.run_id})"
            tags |= {"source_run": row.run_id, "mlflow.note.content": f"Up to date, nothing was run: {link}."}
        if row.state == UNKNOWN:
            row.state = CACHED if found else "NotRun"
        if row.state == CACHED:
            tracker.log_child(f"{name} (cached)", tags, {})

    def _inputs_hash(self, name: str) -> str:
        """Hash of what a stage's outputs hang on now; empty where that cannot be told."""
        try:
            return inputs_of(name, self._params, self._digest).hash
        except Exception:  # whatever is wrong with dvc.yaml, it is DVC's to tell
            return ""

    def _counts(self) -> dict[str, float]:
        states = [row.state for row in self._rows.values()]
        return {f"stages/{state.lower()}": float(states.count(state)) for state in set(states)}

    def _log_table(self, client: "MlflowClient", tracker: Tracker) -> None:
        import pandas

        rows = [vars(row) for row in self._rows.values()]
        if rows:
            client.log_table(tracker.run_id, pandas.DataFrame(rows), "stages.json")
        close_dead_runs(client, tracker.experiment)

    def _told(self) -> dict[str, dict[str, Any]]:
        """The last line of each stage that ran."""
        try:
            lines = (self.folder / STAGES_FILE).read_text(encoding="utf-8").splitlines()
        except OSError:
            return {}
        whole = [line for line in lines if line.endswith("}")]  # a full disk cuts a line short
        return {entry["stage"]: entry for entry in map(json.loads, whole)}


@contextmanager
def pipeline_run(door: str, root: Path | None = None) -> Iterator[Pipeline]:
    """A run of the pipeline; stages started in this context belong to it, once `open` was called.

    An exception closes it as FAILED, one that stops the process as KILLED.

    Args:
        door: what started it, as in `flows.pipeline`.
        root: where the records are; the current folder where None.
    """
    name = f"{door.rpartition('.')[2]}-{time.strftime('%Y%m%d-%H%M%S')}-"
    try:
        folder = Path(tempfile.mkdtemp(prefix=name))
    except OSError:  # no room: the stages' runs then stand by themselves
        folder = Path(tempfile.gettempdir(), name)
    os.environ[PIPELINE] = str(folder)
    pipeline = Pipeline(door, folder, root or Path.cwd())
    try:
        yield pipeline
        pipeline.close("FINISHED")
    except BaseException as error:
        pipeline.close("FAILED" if isinstance(error, Exception) else "KILLED")
        raise
    finally:
        os.environ.pop(PIPELINE, None)
        shutil.rmtree(folder, ignore_errors=True)


def _summary() -> dict[str, float]:
    """The results' few main numbers as `METHOD/METRIC`; none where there are no results."""
    with suppress(OSError, ValueError, AttributeError):
        methods = json.loads(SUMMARY.read_text(encoding="utf-8"))
        return {f"{method}/{name}": value for method, numbers in methods.items() for name, value in numbers.items()}
    return {}
