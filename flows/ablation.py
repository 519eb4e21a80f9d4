"""The flow `ablation`: the pipeline once for every cell of a grid of params, and one table of all cells.

    python -m flows.ablation --grid risk.alpha=0.2,0.4 risk.warmup=1,30 --seeds 1,2
    python -m flows.ablation --cell risk.measure=none --cell risk.measure=cvar risk.alpha=0.2
    python -m flows.ablation --paper table3
    python -m flows.ablation --frontier 0.5,1,2

Every cell is a DVC experiment in a workspace of its own; the main workspace stays as it is. What all cells share runs
first and once. A cell that has run before, with the same params and code, is kept. Where one fails, the others
still run.
"""

import sys
from argparse import Namespace
from typing import Annotated, Any

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed
from pydantic import Field

from flows.ablations.cells import make_cells
from flows.ablations.choice import Choice, choose
from flows.ablations.command import parser
from flows.ablations.experiments import Experiments
from flows.ablations.plan import Plan, make_plan
from flows.ablations.publishing import ablation_run, publish
from flows.ablations.running import Runner
from flows.running.command import status_of
from flows.running.processes import Processes
from flows.serving.server import local_settings
from flows.serving.workspace import hold_workspace
from rarlhf.config.errors import UserError
from rarlhf.evaluation.ablation import cells_page, compare_cells
from rarlhf.evaluation.explanations import explain, explanations_page
from rarlhf.evaluation.frontier import compare_at_kl
from rarlhf.evaluation.frontier_page import frontier_page
from rarlhf.evaluation.pages import Page
from rarlhf.evaluation.words import counted


@flow(name="ablation")
def ablation(
    grid: dict[str, list[Any]] | None = None,
    cells: list[dict[str, Any]] | None = None,
    paper: str | None = None,
    frontier: list[float] | None = None,
    methods: list[str] | None = None,
    seeds: list[int] | None = None,
    name: str | None = None,
    jobs: Annotated[int, Field(ge=1)] | None = None,
) -> State[None]:
    """Runs the pipeline for every cell and compares them.

    Args:
        grid: dotted keys of params.yaml and their values, as {"risk.alpha": [0.2, 0.4]}; every point is a cell.
        cells: instead of a grid, the params of each cell.
        paper: instead of either, a table of the paper, or an experiment on it: table3, explanations.
        frontier: instead of these, KL targets, to compare methods at common KL; [] for targets around kl.target.
        methods: that every cell trains; where empty, those of params.yaml.
        seeds: of every cell; where empty, those of params.yaml.
        name: of the folder in reports/ablation/; where empty, made from the keys.
        jobs: how many cells run at the same time; where empty, one for each accelerator, or one on a CPU.
    """
    logger = get_run_logger()
    with hold_workspace(logger.info) as held:
        try:
            choice = choose(grid, cells, paper, frontier, name, seeds, methods)
            experiments = Experiments(Processes([held]))
            plan = make_plan(choice.name, choice.points, choice.common, experiments, choice.methods)
        except UserError as error:
            logger.error(str(error))
            return Failed(message=str(error))
        with ablation_run(plan) as (tracker, environment):
            done, failed = Runner(plan, experiments, jobs, environment).run()
            pages = _pages(plan, choice, experiments)
            if pages:
                publish(plan, pages, done, failed, tracker)
            tracker.close("FAILED" if failed else "FINISHED")
    if failed:
        return Failed(message=f"not done: {', '.join(failed)} ({'; '.join(dict.fromkeys(failed.values()))})")
    return Completed(message=f"{counted(len(plan.cells), 'cell')}; {len(plan.kept)} had run before")


def _pages(plan: Plan, choice: Choice, experiments: Experiments) -> list[Page]:
    """The cells that were measured, compared; empty where none was, or none of RLHF's curve."""
    evaluations = {name: experiments.evaluation(name) for name in plan.cells}
    measured = {name: (plan.cells[name].values, e) for name, e in evaluations.items() if e is not None}
    if not measured:
        return []
    params = plan.cells[next(iter(measured))].params.evaluate
    if choice.page == "explanations":
        explained = explain(plan.name, measured, params)
        return [] if explained is None else [explanations_page(explained)]
    table = cells_page(compare_cells(plan.name, measured, params))
    at_kl = [frontier_page(compare_at_kl(plan.name, measured, params))] if choice.page == "frontier" else []
    return [*at_kl, table]


def _run(options: Namespace) -> State[Any]:
    """Runs the flow in this process, with a server where one answers.

    Raises: UserError for a wrong cell, before a server starts.
    """
    asked = vars(options) | {"grid": dict(options.grid), "cells": [dict(cell) for cell in options.cells]}
    choice = choose(**{key: value for key, value in asked.items() if key != "jobs"})
    make_cells(choice.points, choice.common, choice.methods)
    with local_settings():
        return ablation(**asked, return_state=True)


def main() -> int:
    """The command line; returns the exit status."""
    options = parser().parse_args()
    return status_of(lambda: _run(options), "stopped; finished cells are kept, and the same command runs the rest")


if __name__ == "__main__":
    sys.exit(main())
