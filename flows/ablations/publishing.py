"""Shows an ablation: its table in files, in MLflow and in Prefect, and its run in MLflow."""

import csv
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

from prefect import get_run_logger
from prefect.artifacts import create_markdown_artifact

from flows.ablations.experiments import Outcome
from flows.ablations.plan import Plan
from rarlhf.evaluation.ablation import CellTable, csv_rows, markdown, terminal
from rarlhf.messages.markdown import table as markdown_table
from tasks.running.outputs import Outputs
from tasks.tracking.parent import PIPELINE, publish_parent
from tasks.tracking.record import RunRecord
from tasks.tracking.tracker import Tracker

REPORTS = Path("reports/ablation")


def publish(
    plan: Plan, table: CellTable, done: Mapping[str, Outcome], failed: Mapping[str, str], tracker: Tracker
) -> None:
    """Shows the table, and writes it under reports/ablation/, to MLflow and to Prefect."""
    get_run_logger().info("\n%s", terminal(table))
    states = markdown_table(
        ["cell", "state", "stages run", "reused"], [_state(name, plan, done) for name in plan.cells]
    )
    text = f"# Ablation {plan.name}\n\n{markdown(table)}\n{states}\n"
    folder = REPORTS / plan.name
    _write(folder, text, plan, table, failed)
    get_run_logger().info("written: %s/table.md, table.csv, table.json; `dvc exp show` lists the cells", folder)
    tracker.artifact(folder)
    _track(table, tracker)
    create_markdown_artifact(text, key=re.sub(r"[^a-z0-9]+", "-", f"ablation-{plan.name}".lower()).strip("-"))


def _write(folder: Path, text: str, plan: Plan, table: CellTable, failed: Mapping[str, str]) -> None:
    """Writes the table as Markdown, CSV and JSON, all three or none."""
    outputs = Outputs()
    with outputs.write(folder) as partial:
        (partial / "table.md").write_text(text, encoding="utf-8")
        with (partial / "table.csv").open("w", encoding="utf-8", newline="") as stream:
            csv.writer(stream, lineterminator="\n").writerows(csv_rows(table))
        about = {"title": table.title, "reference": table.reference, "confidence": table.params.confidence}
        content = {
            "name": plan.name,
            "common": plan.common,
            "failed": failed,
            **about,
            "rows": [asdict(row) for row in table.rows],
        }
        (partial / "table.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    outputs.commit()


def _track(table: CellTable, tracker: Tracker) -> None:
    """Sends the table to MLflow, and a run for each of its rows."""
    heading, *lines = csv_rows(table)
    tracker.table([dict(zip(map(str, heading), map(str, line), strict=True)) for line in lines], "ablation.json")
    for row in table.rows:
        tags = {"method": row.method, **{key: str(value) for key, value in row.values.items()}}
        tracker.child(row.label, tags, {metric: spread["mean"] for metric, spread in row.metrics.items()})


def _state(name: str, plan: Plan, done: Mapping[str, Outcome]) -> list[str]:
    """A line of the table of states: the experiment, how it ended, stages run and reused."""
    if name in done:
        return [name, "done", str(done[name].ran), str(done[name].reused)]
    return [name, "kept" if name in plan.kept else "failed", "", ""]


@contextmanager
def ablation_run(plan: Plan) -> Iterator[tuple[Tracker, dict[str, str]]]:
    """A run in MLflow, and the environment that nests the runs of the cells' stages under it."""
    params = next(iter(plan.cells.values())).params
    tags = {"stage": "ablation", "preset": params.preset, "mlflow.source.name": "flows.ablation"}
    record = RunRecord(f"ablation {plan.name}", tags, {"cells": ", ".join(plan.cells), **plan.common})
    with TemporaryDirectory(prefix=f"ablation-{plan.name}-") as folder:
        tracker = Tracker(record, Path.cwd())
        tracker.call(lambda _client, run: publish_parent(run.run_id, Path(folder)))
        try:
            yield tracker, {PIPELINE: folder}
        except BaseException as error:
            tracker.close("FAILED" if isinstance(error, Exception) else "KILLED")
            raise
