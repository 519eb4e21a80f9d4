"""MLflow's run of one run of the pipeline, above the runs of its stages; for the flow and for `make repro`.

A stage that was up to date is a row of this run's table, not a run of its own: a pipeline run in which nothing had to
run is one row in the list of runs.
"""

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
from typing import TYPE_CHECKING

from rarlhf.config.params import Params
from rarlhf.evaluation.names import COMPARED
from tasks.inputs import digest, inputs_of
from tasks.tracking.parent import PIPELINE, publish_parent, told_stages
from tasks.tracking.record import NOTE, RunRecord, all_params, run_name, run_tags
from tasks.tracking.store import close_dead_runs
from tasks.tracking.tracker import Status, Tracker

if TYPE_CHECKING:
    from mlflow.tracking.client import MlflowClient

RESULTS = Path("metrics/evaluate.json")
CACHED = "Cached"
IDLE = "(nothing to do)"  # in the name of a run whose stages were all up to date
STATES = {"FINISHED": "Completed", "FAILED": "Failed", "KILLED": "Killed", "RUNNING": "Killed"}  # of a stage's run


@dataclass
class StageRow:
    """A stage in the table of a pipeline run."""

    stage: str
    state: str
    seconds: float | None = None
    run_id: str = ""


class Pipeline:
    """One run of the pipeline. Until `open` nothing is tracked; nothing here raises or waits for a server.

    Attributes:
        folder: where its stages' processes find it (tasks.tracking.parent).
    """

    def __init__(self, source: str, folder: Path, root: Path) -> None:
        self.folder = folder
        self._source = source
        self._root = root
        self._tracker: Tracker | None = None
        self._rows: dict[str, StageRow] = {}
        self._digest = cache(digest)  # many stages share an input

    def open(self, params: Params) -> None:
        """Starts the run, with all parameters."""
        tags = {
            **run_tags(params, "pipeline"),
            "pipeline": self.folder.name,
            "mlflow.source.name": self._source,
        }
        self._params = params
        self._name = run_name(params, "pipeline")
        self._tracker = Tracker(RunRecord(self._name, tags, all_params(params)), self._root)
        self._tracker.call(lambda _client, tracker: publish_parent(tracker.run_id, self.folder))

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
        """Records how a stage ended.

        Args:
            name: of the stage, as in `ppo@rlhf-1`.
            state: any word, shown in the table; for a `Cached` stage the run that made its outputs is looked up.
            seconds: how long the stage took; None where its own run holds that.
        """
        self._rows[name] = StageRow(name, state, seconds)
        if state == CACHED and self._tracker:
            inputs_hash = self._inputs_hash(name)
            self._tracker.call(lambda client, tracker: self._find_source(client, tracker, name, inputs_hash))

    def ran(self) -> Mapping[str, str]:
        """State of each stage whose process started, by its own lines; `Killed` where the last line is missing."""
        return {name: STATES[line["state"]] for name, line in told_stages(self.folder).items()}

    def close(self, status: Status) -> None:
        """Writes the table of stages and the summary of the results, and ends the run."""
        if not self._tracker:
            return
        for name, line in told_stages(self.folder).items():
            row = self._rows.setdefault(name, StageRow(name, STATES[line["state"]]))
            row.run_id = line["run_id"]
            row.seconds = line["seconds"] if row.seconds is None and line["state"] != "RUNNING" else row.seconds
        if status == "FINISHED":
            self._tracker.metrics(_summary())
        self._tracker.metrics(self._counts())
        self._tracker.call(self._log_table)
        self._tracker.call(self._describe)
        self._tracker.close(status)
        self._tracker = None

    def _find_source(self, client: "MlflowClient", tracker: Tracker, name: str, inputs_hash: str) -> None:
        """Finds the run that made the outputs of a stage that did not run."""
        row = self._rows[name]
        wanted = f"tags.inputs_hash = '{inputs_hash}' and attributes.status = 'FINISHED'"
        found = client.search_runs([tracker.experiment], wanted, max_results=1) if inputs_hash else []
        row.run_id = found[0].info.run_id if found else ""

    def _inputs_hash(self, name: str) -> str:
        """Hash of what decides a stage's outputs now; empty where it cannot be computed."""
        try:
            return inputs_of(name, self._params, self._digest).hash
        except Exception:  # DVC reports what is wrong with dvc.yaml
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

    def _describe(self, client: "MlflowClient", tracker: Tracker) -> None:
        """Says in the run's description what was done, and in its name where that was nothing."""
        states = [row.state for row in self._rows.values()]
        counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
        about = f"The pipeline of preset {self._params.preset}, started by `{self._source}`."
        about += f"\n\nStages: {counts}. `stages.json` names the run that made each one's outputs." if states else ""
        client.set_tag(tracker.run_id, NOTE, about)
        if set(states) == {CACHED}:
            client.set_tag(tracker.run_id, "mlflow.runName", f"{self._name} {IDLE}")


@contextmanager
def pipeline_run(source: str, root: Path | None = None) -> Iterator[Pipeline]:
    """A run of the pipeline. Stages that start in this context, after `open`, belong to it.

    An exception closes it as FAILED, one that stops the process as KILLED.

    Args:
        source: what started it, as in `flows.pipeline`.
        root: where the records are; the current folder where None.
    """
    name = f"{source.rpartition('.')[2]}-{time.strftime('%Y%m%d-%H%M%S')}-"
    try:
        folder = Path(tempfile.mkdtemp(prefix=name))
    except OSError:  # no space: the stages' runs then have none above them
        folder = Path(tempfile.gettempdir(), name)
    os.environ[PIPELINE] = str(folder)
    pipeline = Pipeline(source, folder, root or Path.cwd())
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
    """The main numbers of the results as `METHOD/METRIC`; empty where there are no results."""
    with suppress(OSError, ValueError, AttributeError, KeyError, TypeError):
        methods = json.loads(RESULTS.read_text(encoding="utf-8"))["methods"]
        return {
            f"{m}/{name}": spreads[name]["mean"]
            for m, spreads in methods.items()
            for name in COMPARED
            if name in spreads
        }
    return {}
