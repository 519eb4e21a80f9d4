"""Which cells an ablation has: a grid, cells one by one, or an experiment that has a name and a page of its own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from flows.ablations.cells import PAPER, Values
from flows.ablations.plan import cell_values, checked_name, common_values
from rarlhf.config.errors import UserError
from rarlhf.config.load import load_params
from rarlhf.config.methods import RLHF
from tasks.preset import PARAMS

EXPLANATIONS = "explanations"
NAMED = (*PAPER, EXPLANATIONS)  # what --paper takes
AROUND = (0.5, 1.0, 2.0)  # KL targets of a frontier where none is given, as multiples of kl.target
COEFS = (0.125, 0.25, 0.5, 1.0, 2.0)  # fixed coefficients of RLHF's curve, as multiples of kl.coef
RANKINGS = ("episode_return", "random", "value")
AVERAGES = ("all", "kept_over_batch")
DROPPED = ("free", "pay_kl")


@dataclass(frozen=True)
class Choice:
    """What an ablation compares.

    Attributes:
        name: of its folder in reports/ablation/.
        points: each cell's own params.
        common: what every cell changes in params.yaml.
        methods: the methods that each cell trains; empty: all cells train the same.
        page: how the cells are compared: side by side, at common KL besides, or with RLHF's curve.
    """

    name: str
    points: Sequence[Values]
    common: Values
    methods: Sequence[Sequence[str]] = field(default_factory=tuple)
    page: Literal["table", "frontier", "explanations"] = "table"


def choose(
    grid: Mapping[str, Sequence[Any]] | None = None,
    cells: Sequence[Values] | None = None,
    paper: str | None = None,
    frontier: Sequence[float] | None = None,
    name: str | None = None,
    seeds: Sequence[int] | None = None,
    methods: Sequence[str] | None = None,
) -> Choice:
    """The cells that were asked for.

    Args:
        grid: dotted keys of params.yaml and their values.
        cells: the params of each cell.
        paper: one of `NAMED`.
        frontier: KL targets; empty for those around `kl.target`; None for no frontier.
        name: of the folder in reports/ablation/; None for one that is made from the keys.
        seeds: of every cell; None for those of params.yaml.
        methods: trained methods of every cell; None for those of params.yaml.

    Raises: UserError unless exactly one of the first four is given, and for a value that none can have.
    """
    common = common_values(seeds, methods)
    asked = [bool(grid), bool(cells), bool(paper), frontier is not None]
    if sum(asked) == 1 and frontier is not None:
        return Choice(checked_name(name or "frontier"), _frontier(frontier), common, page="frontier")
    if sum(asked) == 1 and paper == EXPLANATIONS:
        return _explanations(name, common, methods)
    if frontier is not None:  # beside one of the others
        grid = cells = paper = None
    points, name = cell_values(grid, cells, paper, name)
    return Choice(name, points, common)


def _frontier(targets: Sequence[float]) -> list[dict[str, Any]]:
    """A cell for each KL target."""
    if len(set(targets)) < len(targets):
        raise UserError(f"--frontier {', '.join(map(str, targets))}: give KL targets, each once")
    target = load_params(PARAMS).kl.target
    return [{"kl.target": float(value)} for value in targets or [share * target for share in AROUND]]


def _explanations(name: str | None, common: Values, methods: Sequence[str] | None) -> Choice:
    """The experiment that separates the explanations of the paper's gain (docs/ablation.md).

    Every ranking x average x treatment of dropped episodes trains `ra_rlhf` under the paper's controller; RLHF is
    trained at fixed KL coefficients, and once under that controller.
    """
    if methods is not None:
        raise UserError(f"--paper {EXPLANATIONS} trains rlhf and ra_rlhf: leave out --methods")
    coef = load_params(PARAMS).kl.coef
    grid: list[dict[str, Any]] = [
        {"risk.ranking": ranking, "kl.average": average, "risk.dropped": dropped}
        for ranking in RANKINGS
        for average in AVERAGES
        for dropped in DROPPED
    ]
    fixed: list[dict[str, Any]] = [{"kl.rate": 0.0, "kl.coef": float(f"{share * coef:.6g}")} for share in COEFS]
    points = [*grid, *fixed, {"kl.average": "all"}]
    critic = {"ppo.baseline": "critic", "ppo.responses": 1}  # the ranking by value needs one
    paper = {**critic, "kl.controller": "paper", "kl.stop_above": None, "risk.measure": "cvar", "risk.of": "return"}
    chosen = [*[("ra_rlhf",)] * len(grid), *[(RLHF,)] * (len(points) - len(grid))]
    return Choice(checked_name(name or EXPLANATIONS), points, {**common, **paper}, chosen, "explanations")
