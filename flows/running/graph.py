"""The stages and their order, read from dvc.yaml, and which of them are up to date."""

from collections.abc import Sequence
from graphlib import TopologicalSorter

from rarlhf.config.errors import UserError

Graph = dict[str, list[str]]


def read_graph(targets: Sequence[str] = ()) -> Graph:
    """The stages of dvc.yaml that the targets need, each with the stages it waits for; every stage without targets.

    Args:
        targets: names of stages; a name without `@` is short for all its runs, as `ppo` for `ppo@rlhf-1`.

    Returns: name to upstream names, in an order in which every stage comes after those it waits for.
    Raises: UserError for a target that is not there.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo() as repo:
            edges = repo.index.graph
            upstream = {stage.addressing: sorted(to.addressing for to in edges.successors(stage)) for stage in edges}
    except DvcException as error:
        raise UserError(f"DVC cannot read the pipeline: {error}") from error
    needed = _needed(upstream, [name for target in targets for name in _runs(target, upstream)] or list(upstream))
    ordered = TopologicalSorter({name: upstream[name] for name in sorted(needed)}).static_order()
    return {name: upstream[name] for name in ordered}


def up_to_date(graph: Graph) -> set[str]:
    """Stages that are up to date, as are all stages they wait for. Asking for all at once saves 0.5 s for each.

    Empty if another process holds DVC's lock: DVC is then asked stage by stage.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    fresh: set[str] = set()
    try:
        with Repo() as repo, repo.lock:
            stages = {stage.addressing: stage for stage in repo.index.stages}
            for name, upstream in graph.items():
                if fresh.issuperset(upstream) and not stages[name].changed():
                    fresh.add(name)
    except DvcException:
        return set()
    return fresh


def _runs(target: str, upstream: Graph) -> list[str]:
    runs = [name for name in upstream if target in (name, name.split("@")[0])]
    if not runs:
        raise UserError(f"dvc.yaml has no stage {target}; it has {', '.join(sorted(upstream))}")
    return runs


def _needed(upstream: Graph, names: list[str]) -> set[str]:
    """The named stages and all that these wait for, directly or through others."""
    needed: set[str] = set()
    while names:
        name = names.pop()
        if name not in needed:
            needed.add(name)
            names += upstream[name]
    return needed
