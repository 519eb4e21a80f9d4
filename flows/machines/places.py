"""Where the stages of a run are brought up to date: here, or on the machines of a pool."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flows.machines.request import edited, head
from flows.running.graph import Graph, opened
from flows.running.reproduce import reproduce
from flows.running.stages import Bring
from rarlhf.config.errors import UserError
from rarlhf.config.params import Params

if TYPE_CHECKING:
    from dvc.stage import Stage

COMPUTES = "runtime"  # a stage that reads this section of params.yaml computes with a model; the others take seconds
ASKED_FOR = 32  # stages of a run at the same time, where nothing else is said: each is a thread here


@dataclass(frozen=True)
class Places:
    """Where stages run.

    Attributes:
        bring: brings one up to date.
        number: of stages at the same time; None: as many as this machine has room for.
        here: how many of them may run on this machine; None: as many as it has room for.
    """

    bring: Bring
    number: int | None
    here: int | None


def places(
    pool: str | None,
    remote: str | None,
    graph: Graph,
    params: Params,
    parallel: int | None,
    say: Callable[[str], object],
) -> Places:
    """Where the stages of a graph run.

    Args:
        pool: name of a work pool; None for this machine alone.
        remote: name of a DVC remote; a pool needs one.
        graph: the stages.
        params: `runtime.device` says which machines are asked.
        parallel: how many stages at the same time.
        say: is given a line that says what runs where.

    Raises: UserError where a pool cannot be used.
    """
    if pool is None:
        return Places(reproduce, None, parallel)
    if remote is None:
        raise UserError(f"pool {pool}: machines get inputs and send results through a DVC remote; name one (--remote)")
    if changed := edited():
        raise UserError(
            f"pool {pool}: machines run the commit that is checked out; commit or remove {changed[0]} first"
        )
    head()
    from flows.machines.pool import Pool
    from flows.machines.server import ensure, queue_for
    from flows.serving.server import page, server_answers

    if not server_answers():
        raise UserError(f"pool {pool}: no Prefect server answers at {page()}; `make deploy` starts one")
    ensure(pool)
    queue = queue_for(params.runtime.device, pool)
    stages = computing(graph)
    say(f"{len(stages)} of {len(graph)} stages go to queue {queue} of pool {pool}, the others run here")
    return Places(Pool(pool, remote, queue, stages).bring, parallel or ASKED_FOR, None)


def computing(graph: Mapping[str, object]) -> set[str]:
    """The stages of a graph that compute with a model, whose results DVC's run cache can hold."""
    with opened() as repo:
        return {stage.addressing for stage in repo.index.stages if stage.addressing in graph and _computes(stage)}


def _computes(stage: "Stage") -> bool:
    listed = [name for dependency in stage.params for name in dependency.params]
    return not stage.always_changed and any(f"{name}.".startswith(f"{COMPUTES}.") for name in listed)
