"""What an ablation is: its name, its cells, and which of them have run before."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flows.ablations.cells import PAPER, Cell, chosen_methods, grid_values, make_cells
from flows.ablations.experiments import Experiments
from rarlhf.config.errors import UserError


@dataclass(frozen=True)
class Plan:
    """What an ablation is.

    Attributes:
        name: of its folder in reports/ablation/.
        cells: experiment's name -> cell.
        kept: names of the cells that have run before.
        common: params that every cell changes in params.yaml.
    """

    name: str
    cells: Mapping[str, Cell]
    kept: frozenset[str]
    common: Mapping[str, Any]

    @property
    def pending(self) -> list[str]:
        """Names of the cells that still have to run."""
        return [name for name in self.cells if name not in self.kept]


def cell_values(
    grid: Mapping[str, Sequence[Any]] | None,
    cells: Sequence[Mapping[str, Any]] | None,
    paper: str | None,
    name: str | None,
) -> tuple[Sequence[Mapping[str, Any]], str]:
    """The params of every cell and the ablation's name.

    Raises: UserError unless exactly one of `grid`, `cells` and `paper` is given, and for a name that
        no folder can have.
    """
    if sum(map(bool, (grid, cells, paper))) != 1:
        raise UserError("give one of --grid risk.alpha=0.2,0.4, --cell risk.alpha=0.2, --paper table3 or --frontier")
    if paper and paper not in PAPER:
        raise UserError(f"--paper {paper} is unknown; use {', '.join(PAPER)} or explanations")
    points = grid_values(grid) if grid else PAPER[paper] if paper else cells or []
    keys = dict.fromkeys(key.rpartition(".")[2] for point in points for key in point)
    return points, checked_name(name or paper or "-".join(keys))


def checked_name(name: str) -> str:
    """The name.

    Raises: UserError for one that no folder can have.
    """
    if not re.fullmatch(r"\w[\w-]*", name, re.ASCII):
        raise UserError(f"no folder can be named {name!r}: use letters, digits, _ and - in --name")
    return name


def common_values(seeds: Sequence[int] | None, methods: Sequence[str] | None = None) -> dict[str, Any]:
    """What every cell changes in params.yaml.

    Raises: UserError for a method that params.yaml does not train.
    """
    return ({"seeds": list(seeds)} if seeds else {}) | (chosen_methods(methods) if methods else {})


def make_plan(
    name: str,
    points: Sequence[Mapping[str, Any]],
    common: Mapping[str, Any],
    there: Experiments,
    methods: Sequence[Sequence[str]] = (),
) -> Plan:
    """The cells with names that no other experiment has, and which of them have run before.

    Args:
        name: of the ablation.
        points: each cell's own params.
        common: what every cell changes in params.yaml.
        there: the experiments on the commit that is checked out.
        methods: the methods that each cell trains; empty: all cells train the same.

    Raises: UserError as `make_cells`.
    """
    cells: dict[str, Cell] = {}
    kept = set()
    for cell in make_cells(points, common, methods):
        experiment, finished = there.name_for(cell, cells)
        cells[experiment] = cell
        kept |= {experiment} if finished else set()
    return Plan(name, cells, frozenset(kept), common)
