"""The flow `ablation`: the pipeline once for every cell of a grid of params, and one table of all cells.

    python -m flows.ablation --grid risk.alpha=0.2,0.4 risk.warmup=1,30 --seeds 1,2
    python -m flows.ablation --cell risk.measure=none --cell risk.measure=cvar risk.alpha=0.2
    python -m flows.ablation --paper table3

Every cell is a DVC experiment in a workspace of its own; the main workspace stays as it is. What all cells share runs
first and once. A cell that is there already, with the same params and code, is kept; one that fails leaves the others.
"""

import argparse
import csv
import json
import re
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryDirectory
from typing import Annotated, Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture
from prefect.states import Cancelled, Completed, Failed
from pydantic import Field
from ruamel.yaml import YAML

from flows.ablations.cells import PAPER, Cell, grid_values, make_cells, shared_stages
from flows.ablations.experiments import ExperimentError, Experiments, Outcome
from flows.running.devices import accelerators, shares
from flows.running.stages import Processes
from flows.serving.runs import hold_workspace
from flows.serving.server import local_settings
from rarlhf.config.errors import UserError
from rarlhf.evaluation.ablation import Table, compare_cells, csv_rows, markdown, terminal
from rarlhf.messages.markdown import table as markdown_table
from tasks.running.outputs import Outputs
from tasks.tracking.parent import PARENT_FILE, PIPELINE
from tasks.tracking.record import Record
from tasks.tracking.tracker import Tracker

REPORTS = Path("reports/ablation")
Shares = SimpleQueue[Mapping[str, str]]


@dataclass(frozen=True)
class Plan:
    """What an ablation is.

    Attributes:
        name: of its folder in reports/ablation/.
        cells: experiment's name -> cell.
        kept: names of those that are there already.
        common: params that all cells have over params.yaml.
    """

    name: str
    cells: Mapping[str, Cell]
    kept: frozenset[str]
    common: Mapping[str, Any]

    @property
    def pending(self) -> list[str]:
        """Names of the cells that are to run."""
        return [name for name in self.cells if name not in self.kept]


@flow(name="ablation")
def ablation(
    grid: dict[str, list[Any]] | None = None,
    cells: list[dict[str, Any]] | None = None,
    paper: str | None = None,
    seeds: list[int] | None = None,
    name: str | None = None,
    jobs: Annotated[int, Field(ge=1)] | None = None,
) -> State[None]:
    """Runs the pipeline for every cell and compares them.

    Args:
        grid: dotted keys of params.yaml and their values, as {"risk.alpha": [0.2, 0.4]}; every point is a cell.
        cells: instead of a grid, the params of each cell.
        paper: instead of either, a table of the paper: table3.
        seeds: of every cell; those of params.yaml where empty.
        name: of the folder in reports/ablation/; made from the keys where empty.
        jobs: how many cells run at the same time; where empty, one for each accelerator, or one on a CPU.
    """
    logger = get_run_logger()
    with hold_workspace() as held:
        try:
            points, name = _points(grid, cells, paper, name)
            experiments = Experiments(Processes([held]))
            plan = _plan(name, points, _common(seeds), experiments)
        except UserError as error:
            logger.error(str(error))
            return Failed(message=str(error))
        with _parent_run(plan) as (tracker, environment):
            done, failed = Runner(plan, experiments, jobs, environment).run()
            measured = {n: (c.values, e) for n, c in plan.cells.items() if (e := experiments.evaluation(n)) is not None}
            if measured:
                _publish(plan, compare_cells(plan.name, measured), done, failed, tracker)
            tracker.close("FAILED" if failed else "FINISHED")
    if failed:
        return Failed(message=f"not done: {', '.join(failed)} ({'; '.join(dict.fromkeys(failed.values()))})")
    return Completed(message=f"{len(plan.cells)} cells, {len(plan.kept)} of them were there already")


def _points(
    grid: Mapping[str, Sequence[Any]] | None,
    cells: Sequence[Mapping[str, Any]] | None,
    paper: str | None,
    name: str | None,
) -> tuple[Sequence[Mapping[str, Any]], str]:
    """The params of every cell and the ablation's name.

    Raises: UserError unless one of the three is given, and for a name that is not one of a folder.
    """
    if sum(map(bool, (grid, cells, paper))) != 1:
        raise UserError("give one of --grid risk.alpha=0.2,0.4, --cell risk.alpha=0.2 or --paper table3")
    if paper and paper not in PAPER:
        raise UserError(f"no ablation {paper} of the paper; there is {', '.join(PAPER)}")
    points = grid_values(grid) if grid else PAPER[paper] if paper else cells or []
    keys = dict.fromkeys(key.rpartition(".")[2] for point in points for key in point)
    name = name or paper or "-".join(keys)
    if not re.fullmatch(r"\w[\w-]*", name, re.ASCII):
        raise UserError(f"{name!r} is no name of a folder: letters, digits, _ and - will do")
    return points, name


def _common(seeds: Sequence[int] | None) -> dict[str, Any]:
    """What every cell has over params.yaml."""
    return {"seeds": list(seeds)} if seeds else {}


def _plan(name: str, points: Sequence[Mapping[str, Any]], common: Mapping[str, Any], there: Experiments) -> Plan:
    cells: dict[str, Cell] = {}
    kept = set()
    for cell in make_cells(points, common):
        experiment, finished = there.name_for(cell, cells)
        cells[experiment] = cell
        kept |= {experiment} if finished else set()
    return Plan(name, cells, frozenset(kept), common)


@task(cache_policy=NO_CACHE)
def run_experiment(
    name: str,
    values: Mapping[str, Any],
    targets: Sequence[str],
    experiments: Experiments,
    free: Shares,
    environment: Mapping[str, str],
) -> Outcome | State[None]:
    """Runs an experiment as soon as there is a share for it."""
    share = free.get()
    try:
        if experiments.processes.stopped:
            return Cancelled(message="stopped with the flow")
        return experiments.run(name, values, targets, {**share, **environment}, get_run_logger().info)
    except ExperimentError as error:
        return Failed(message=str(error))
    finally:
        free.put(share)


class Runner:
    """Runs the cells that are not there yet, within a flow run."""

    def __init__(self, plan: Plan, experiments: Experiments, jobs: int | None, environment: Mapping[str, str]) -> None:
        self._plan = plan
        self._experiments = experiments
        self._environment = environment
        self._free: Shares = SimpleQueue()
        cpu = next(iter(plan.cells.values())).params.runtime.device == "cpu"
        for share in shares([] if cpu else accelerators(), jobs):
            self._free.put(share)

    def run(self) -> tuple[dict[str, Outcome], dict[str, str]]:
        """What each cell took that ran, and what those told that failed."""
        for name in self._plan.cells:
            if name in self._plan.kept:
                get_run_logger().info("%s: there already, kept", name)
        try:
            shared = self._run_shared()
            if shared:
                return {}, dict.fromkeys(self._plan.pending, shared)
            futures = {name: self._submit(name, name, []) for name in self._plan.pending}
            states = {name: _state_of(future) for name, future in futures.items()}
        except BaseException:
            self._experiments.processes.stop()
            raise
        done = {name: state.result() for name, state in states.items() if state.is_completed()}
        return done, {name: str(state.message) for name, state in states.items() if not state.is_completed()}

    def _run_shared(self) -> str:
        """Makes what all cells share, so that none of them makes it twice; what it told if it failed."""
        cells = [self._plan.cells[name] for name in self._plan.pending]
        if len(cells) < 2:
            return ""
        targets = shared_stages({**self._plan.common, **cells[0].values}, cells)
        name = f"{self._plan.name}-shared"
        state = _state_of(self._submit(self._plan.pending[0], name, targets))
        self._experiments.remove(name)
        return "" if state.is_completed() else str(state.message)

    def _submit(self, cell: str, name: str, targets: Sequence[str]) -> PrefectFuture[Any]:
        """Starts an experiment with a cell's params."""
        values = {**self._plan.common, **self._plan.cells[cell].values}
        named = run_experiment.with_options(name="shared" if targets else "cell", task_run_name=name)
        return named.submit(name, values, targets, self._experiments, self._free, self._environment)


def _state_of(future: PrefectFuture[Any]) -> State[Any]:
    future.wait()
    return future.state


def _publish(
    plan: Plan, table: Table, done: Mapping[str, Outcome], failed: Mapping[str, str], tracker: Tracker
) -> None:
    """Shows the table, and writes it under reports/ablation/, to MLflow and to Prefect."""
    get_run_logger().info("\n%s", terminal(table))
    rows = csv_rows(table)
    states = markdown_table(
        ["cell", "state", "stages run", "reused"], [_state(name, plan, done) for name in plan.cells]
    )
    text = f"# Ablation {plan.name}\n\n{markdown(table)}\n{states}\n"
    folder = REPORTS / plan.name
    outputs = Outputs()
    with outputs.write(folder) as partial:
        (partial / "table.md").write_text(text, encoding="utf-8")
        with (partial / "table.csv").open("w", encoding="utf-8", newline="") as stream:
            csv.writer(stream, lineterminator="\n").writerows(rows)
        content = {"name": plan.name, "common": plan.common, "failed": failed, **asdict(table)}
        (partial / "table.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    outputs.commit()
    get_run_logger().info("written: %s/table.md, table.csv, table.json; `dvc exp show` lists the cells", folder)
    tracker.artifact(folder)
    heading, *lines = rows
    tracker.table([dict(zip(map(str, heading), map(str, line), strict=True)) for line in lines], "ablation.json")
    for row in table.rows:
        tags = {"method": row.method, **{key: str(value) for key, value in row.values.items()}}
        tracker.child(row.label, tags, {metric: spread["mean"] for metric, spread in row.metrics.items()})
    create_markdown_artifact(text, key=re.sub(r"[^a-z0-9]+", "-", f"ablation-{plan.name}".lower()).strip("-"))


def _state(name: str, plan: Plan, done: Mapping[str, Outcome]) -> list[str]:
    """A line of the table of states: the experiment, how it ended, stages run and reused."""
    if name in done:
        return [name, "done", str(done[name].ran), str(done[name].reused)]
    return [name, "kept" if name in plan.kept else "failed", "", ""]


@contextmanager
def _parent_run(plan: Plan) -> Iterator[tuple[Tracker, dict[str, str]]]:
    """A run in MLflow, and the environment by which those of the cells' stages are nested under it."""
    params = next(iter(plan.cells.values())).params
    tags = {"stage": "ablation", "preset": params.preset, "mlflow.source.name": "flows.ablation"}
    record = Record(f"ablation {plan.name}", tags, {"cells": ", ".join(plan.cells), **plan.common})
    with TemporaryDirectory(prefix=f"ablation-{plan.name}-") as folder:
        tracker = Tracker(record, Path.cwd())
        tracker.call(lambda _client, run: _publish_id(run.run_id, Path(folder)))
        try:
            yield tracker, {PIPELINE: folder}
        except BaseException as error:
            tracker.close("FAILED" if isinstance(error, Exception) else "KILLED")
            raise


def _publish_id(run_id: str, folder: Path) -> None:
    partial = folder / "run.partial"
    partial.write_text(run_id, encoding="utf-8")
    partial.replace(folder / PARENT_FILE)


def _values(text: str) -> tuple[str, list[Any]]:
    key, equals, values = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text}: expected key=value,value")
    return key, _yaml(f"[{values}]")


def _setting(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text}: expected key=value")
    return key, _yaml(value)


def _seeds(text: str) -> list[int]:
    return _values(f"seeds={text}")[1]


def _yaml(text: str) -> Any:
    try:
        return YAML(typ="safe", pure=True).load(text)
    except Exception as error:  # of odd numbers and dates the reader raises more than its own errors
        raise argparse.ArgumentTypeError(f"{text}: not a value ({' '.join(str(error).split())})") from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m flows.ablation", description="Compare cells of params, side by side.")
    parser.add_argument(
        "--grid", type=_values, nargs="+", default=[], metavar="KEY=V1,V2", help="every combination is a cell"
    )
    parser.add_argument(
        "--cell",
        type=_setting,
        nargs="+",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="one cell",
        dest="cells",
    )
    parser.add_argument("--paper", help=f"the cells of a table of the paper: {', '.join(PAPER)}")
    parser.add_argument("--seeds", type=_seeds, metavar="S1,S2", help="of every cell; those of params.yaml if left out")
    parser.add_argument("--name", help="of the folder in reports/ablation/")
    parser.add_argument("--jobs", type=int, help="how many cells run at the same time")
    return parser


def main() -> int:
    """Runs the flow in this process, with a server where one answers; returns the exit status."""
    options = _parser().parse_args()
    asked = vars(options) | {"grid": dict(options.grid), "cells": [dict(cell) for cell in options.cells]}
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # else a temporary server would live on
    try:
        points, _ = _points(asked["grid"], asked["cells"], options.paper, options.name)
        make_cells(points, _common(options.seeds))  # a wrong value is said before a server is started
        with local_settings():
            state = ablation(**asked, return_state=True)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("error: stopped; finished cells are kept, the same command goes on", file=sys.stderr)
        return 128 + signal.SIGINT
    return 0 if state.is_completed() else 1


if __name__ == "__main__":
    sys.exit(main())
