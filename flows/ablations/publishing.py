"""Shows an ablation: its table in files, in MLflow and in Prefect, and its run in MLflow."""

import csv
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from prefect import get_run_logger
from prefect.artifacts import create_markdown_artifact

from flows.ablations.experiments import Outcome
from flows.ablations.plan import Plan
from rarlhf.evaluation.pages import Page
from rarlhf.messages.markdown import table as markdown_table
from tasks.running.outputs import Outputs
from tasks.tracking.parent import PIPELINE, publish_parent
from tasks.tracking.record import RunRecord
from tasks.tracking.tracker import Tracker

REPORTS = Path("reports/ablation")


def publish(
    plan: Plan, pages: Sequence[Page], done: Mapping[str, Outcome], failed: Mapping[str, str], tracker: Tracker
) -> None:
    """Shows the pages, the first one on top, and writes them under reports/ablation/, to MLflow and to Prefect."""
    for page in pages:
        get_run_logger().info("\n%s", page.terminal)
    states = markdown_table(
        ["cell", "state", "stages run", "reused"], [_state(name, plan, done) for name in plan.cells]
    )
    folder = REPORTS / plan.name
    _write(folder, plan, pages, states, failed)
    names = ", ".join(f"{page.name}.md" for page in pages)
    get_run_logger().info("written: %s/%s, with csv and json beside; `make exp` lists the cells", folder, names)
    tracker.artifact(folder)
    _track(pages, tracker)
    text = f"# Ablation {plan.name}\n\n" + "\n".join([*(page.markdown for page in pages), states]) + "\n"
    create_markdown_artifact(text, key=re.sub(r"[^a-z0-9]+", "-", f"ablation-{plan.name}".lower()).strip("-"))


def _write(folder: Path, plan: Plan, pages: Sequence[Page], states: str, failed: Mapping[str, str]) -> None:
    """Writes each page as Markdown, CSV, JSON and, where it has one, picture, all or none."""
    outputs = Outputs()
    with outputs.write(folder) as partial:
        for page in pages:
            if page.png is not None:
                (partial / f"{page.name}.png").write_bytes(page.png)
            picture = f"![{page.name}]({page.name}.png)\n\n" if page.png is not None else ""
            text = f"# Ablation {plan.name}\n\n{picture}{page.markdown}\n{states}\n"
            (partial / f"{page.name}.md").write_text(text, encoding="utf-8")
            with (partial / f"{page.name}.csv").open("w", encoding="utf-8", newline="") as stream:
                csv.writer(stream, lineterminator="\n").writerows(page.rows)
            content = {"name": plan.name, "common": plan.common, "failed": failed, **page.content}
            (partial / f"{page.name}.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    outputs.commit()


def _track(pages: Sequence[Page], tracker: Tracker) -> None:
    """Sends the tables to MLflow, and a run for each of their rows."""
    for page in pages:
        heading, *lines = page.rows
        name = "ablation" if page.name == "table" else page.name
        tracker.table([dict(zip(map(str, heading), map(str, line), strict=True)) for line in lines], f"{name}.json")
        for label, tags, metrics in page.runs:
            tracker.child(label, tags, metrics)


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
    record = RunRecord(f"{params.preset} ablation {plan.name}", tags, {"cells": ", ".join(plan.cells), **plan.common})
    with TemporaryDirectory(prefix=f"ablation-{plan.name}-") as folder:
        tracker = Tracker(record, Path.cwd())
        tracker.call(lambda _client, run: publish_parent(run.run_id, Path(folder)))
        try:
            yield tracker, {PIPELINE: folder}
        except BaseException as error:
            tracker.close("FAILED" if isinstance(error, Exception) else "KILLED")
            raise
