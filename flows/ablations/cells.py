"""The cells of an ablation: which params each has, what it is called, and which stages all of them share."""

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from rarlhf.config.baselines import read_models
from rarlhf.config.errors import UserError
from rarlhf.config.groups import GROUPS
from rarlhf.config.load import load_params
from rarlhf.config.methods import methods_of
from rarlhf.config.params import Params
from tasks.inputs import lookup
from tasks.preset import PARAMS, params_of, set_values

if TYPE_CHECKING:
    from dvc.stage import Stage
    from networkx import DiGraph

Values = Mapping[str, Any]  # dotted key of params.yaml -> value
PAPER: Mapping[str, list[dict[str, Any]]] = {
    # Table 3 of the paper, in its order: n, alpha, rho on IMDB.
    "table3": [
        {"risk.warmup": n, "risk.alpha": alpha, "risk.rho": 0.95}
        for n, alpha in ((1, 0.4), (30, 0.4), (30, 0.3), (30, 0.2))
    ]
}
CHOSEN = tuple(f"methods.{group}" for group in (*GROUPS, "heads"))  # what `chosen_methods` restricts
NO_GRID = {  # dvc.yaml makes stages from these, so that cells would not be comparable
    "seeds": "every cell has the same seeds: --seeds 1,2",
    "methods": "every cell has the same methods: set them in params.yaml",
    "methods.start": "every cell has the same methods: set them in params.yaml",
    **dict.fromkeys(CHOSEN, "every cell has the same methods: set them in params.yaml, or choose of them by --methods"),
    "data.watch": "set it in params.yaml",
}

TRAINING = ("ppo", "fit", "tuned", "head")  # stages with a run for each method or head and seed, and its file of a plan
WITHOUT_PLANS = ("risk.", "methods.", "plan.kl.")  # keys that change stage `plan`, but no plan of the same risk


@dataclass(frozen=True)
class Cell:
    """One point of an ablation.

    Attributes:
        name: of the DVC experiment, unless that is taken.
        values: its own params.
        params: all its params, valid.
        methods: the entries of `methods` of a cell that has fewer methods than params.yaml.
    """

    name: str
    values: Values
    params: Params
    methods: Values = field(default_factory=dict)

    @property
    def settings(self) -> Values:
        """All that it changes in params.yaml, besides what every cell does."""
        return {**self.values, **self.methods}


def grid_values(grid: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Every combination of a grid's values, the last key changing fastest.

    Raises: UserError for a key without values or with one of them twice.
    """
    for key, values in grid.items():
        if not values or any(value in values[:index] for index, value in enumerate(values)):
            raise UserError(f"{key} = {list(values)!r}: give values, each once")
    return [dict(zip(grid, point, strict=True)) for point in product(*grid.values())]


def chosen_methods(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The entries of `methods` with these methods alone, as params.yaml has them.

    Raises: UserError for a name that is in none, and for a rule without the models that it reads.
    """
    methods = load_params(PARAMS).methods
    known = {**methods.trained, **methods.ruled}
    for name in names:
        if name not in known:
            raise UserError(f"{name} is no method of {PARAMS}; it has {', '.join(known)}")
        missing = [model for model in read_models(known[name]) if model in known and model not in names]
        if missing:
            raise UserError(f"{name} reads {', '.join(missing)}: name that too")
    kept = {*names, *(methods.headed[name]["head"] for name in names if name in methods.headed)}
    return {
        key: {name: changes for name, changes in getattr(methods, key.partition(".")[2]).items() if name in kept}
        for key in CHOSEN
    }


def make_cells(points: Sequence[Values], common: Values, methods: Sequence[Sequence[str]] = ()) -> list[Cell]:
    """The cells with their names and params.

    Args:
        points: each cell's own values over params.yaml.
        common: what all have over params.yaml.
        methods: the methods that each cell trains; empty: those of params.yaml, or of `common`.

    Raises: UserError if there is no cell, two are the same, or one is not valid, with its name and the reason.
    """
    if not points or not all(points):
        raise UserError("an ablation needs cells: --grid risk.alpha=0.2,0.4, or --cell, or --paper table3")
    for key in (key for point in points for key in point if key in NO_GRID):
        raise UserError(f"{key} cannot differ between cells; {NO_GRID[key]}")
    load_params(PARAMS)
    text = set_values(PARAMS.read_text(encoding="utf-8"), common)
    chosen = [chosen_methods(names) for names in methods] if methods else [{}] * len(points)
    cells = [
        Cell(name, dict(point), params_of(set_values(text, {**point, **own}), f"{PARAMS} with cell {name}"), own)
        for name, point, own in zip(_names(points), points, chosen, strict=True)
    ]
    for index, cell in enumerate(cells):
        same = [other.name for other in cells[:index] if other.params == cell.params]
        if same:
            raise UserError(f"the cells {same[0]} and {cell.name} have the same params")
    return cells


def varying(cells: Sequence[Cell]) -> list[str]:
    """The keys whose values are not the same in every cell."""
    dumps = [cell.params.model_dump(mode="json") for cell in cells]
    keys = dict.fromkeys(key for cell in cells for key in cell.settings)
    return [key for key in keys if any(lookup(dump, key) != lookup(dumps[0], key) for dump in dumps)]


def shared_stages(params: Values, cells: Sequence[Cell]) -> list[str]:
    """Stages that all cells share and that no other shared stage needs.

    Args:
        params: of one cell, over params.yaml; it decides which stages there are.
        cells: at least two.
    """
    from dvc.repo import Repo

    from rarlhf.risk.planned import needs_plan

    keys, methods = varying(cells), _differing_methods(cells)
    of_plans = [key for key in keys if not f"{key}.".startswith(WITHOUT_PLANS)]
    with TemporaryDirectory() as folder:
        Path(folder, ".dvc").mkdir()
        Path(folder, ".dvc/config").write_text("[core]\n    no_scm = True\n", encoding="utf-8")
        Path(folder, "dvc.yaml").write_text(Path("dvc.yaml").read_text(encoding="utf-8"), encoding="utf-8")
        Path(folder, "params.yaml").write_text(set_values(PARAMS.read_text(encoding="utf-8"), params), encoding="utf-8")
        with Repo(folder) as repo:
            graph = repo.index.graph
            if any(stage.name == "plan" for stage in _changed(graph, of_plans, methods)):
                methods |= {method.name for method in methods_of(cells[0].params) if needs_plan(method)}
                methods |= set(cells[0].params.methods.heads)
            shared = set(graph) - _changed(graph, keys, methods)
            return sorted(s.name for s in shared if not shared & set(graph.predecessors(s)))


def _differing_methods(cells: Sequence[Cell]) -> set[str]:
    """The methods and heads that are not decided by the same values in every cell, whatever their plans are."""
    first, *others = (_values_of_methods(cell.params) for cell in cells)
    return {name for name, values in first.items() if any(other.get(name) != values for other in others)}


def _values_of_methods(params: Params) -> dict[str, dict[str, object]]:
    from rarlhf.risk.planned import method_values

    methods = {method.name: method_values(method) for method in methods_of(params) if method.risk or method.chosen}
    return methods | {name: params.head_of(name).model_dump(mode="json") for name in params.methods.heads}


def _changed(graph: "DiGraph", keys: Collection[str], methods: Collection[str]) -> set["Stage"]:
    """The stages that the keys change, those that need them included."""
    changed = {stage for stage in graph if _reads(stage, keys)}
    while more := {s for s in graph if _changes(s, changed & set(graph.successors(s)), methods)} - changed:
        changed |= more
    return changed


def _changes(stage: "Stage", changed: Iterable["Stage"], methods: Collection[str]) -> bool:
    """Whether a change in what a stage needs changes the stage.

    A change in stage `plan` changes, of the stages that train, only those that train one of `methods`.
    """
    made_by, _, run = stage.name.partition("@")
    keeps = made_by in TRAINING and run.rpartition("-")[0] not in methods
    return any(needed.name != "plan" or not keeps for needed in changed)


def _reads(stage: "Stage", keys: Iterable[str]) -> bool:
    """Whether a stage's `params:` lists one of the keys, a section that contains it, or a key below it.

    Stage `check` reads the whole file. This does not count, because its output is constant.
    """
    listed = [name for dependency in stage.params for name in dependency.params]
    return any(f"{key}.".startswith(f"{name}.") or f"{name}.".startswith(f"{key}.") for key in keys for name in listed)


def _names(points: Sequence[Values]) -> list[str]:
    """A name for each cell: the last parts of its keys with their values, whole keys where two end alike."""
    keys = dict.fromkeys(key for point in points for key in point)
    ends = [key.rpartition(".")[2] for key in keys]
    short = {key: end if ends.count(end) == 1 else key.replace(".", "-") for key, end in zip(keys, ends, strict=True)}
    return ["-".join(f"{short[key]}-{_plain(value)}" for key, value in point.items()) for point in points]


def _plain(value: object) -> str:
    """A value as part of the name of a git reference."""
    text = re.sub(r"^-", "minus-", json.dumps(value))
    return re.sub(r"(?:[^A-Za-z0-9_.]|\.\.+)+", "-", text).strip("-.") or "empty"
