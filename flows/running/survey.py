"""What has to be done, and how much of it fits at the same time: `python -m flows.running.survey [stage ...]`.

`make repro` asks for it in a process of its own: DVC's modules take no memory while stages run, and tracking starts
meanwhile.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from flows.running.devices import stage_shares
from flows.running.graph import Graph, look
from flows.running.lockfile import names_in_lock
from rarlhf.config.errors import UserError
from rarlhf.config.load import load_params


@dataclass(frozen=True)
class Survey:
    """What there is to do.

    Attributes:
        graph: stage to the stages it waits for, as `read_graph` gives it.
        fresh: stages that are up to date, as are all stages they wait for.
        locked: the stages in dvc.lock, in its order.
        order: all stages in the order in which `dvc repro` runs them.
        shares: of stages that may run at the same time, what each adds to its environment.
    """

    graph: Graph
    fresh: list[str]
    locked: list[str]
    order: list[str]
    shares: list[dict[str, str]]


def survey(targets: Sequence[str], force: bool, parallel: int | None) -> Survey | None:
    """Looks at the workspace in a process of its own; None if that failed, which it has then said.

    Args:
        targets: names of stages; all where empty.
        force: whether stages that are up to date run too.
        parallel: how many stages may run at the same time; where None, as many as fit the machine.
    """
    options = [*["--force"] * force, *(["--parallel", str(parallel)] if parallel else [])]
    command = [sys.executable, "-m", "flows.running.survey", *options, "--", *targets]
    asked = subprocess.run(command, stdout=subprocess.PIPE, check=False, start_new_session=True)
    return Survey(**json.loads(asked.stdout)) if asked.returncode == 0 else None


def _survey(targets: Sequence[str], force: bool, parallel: int | None) -> Survey:
    params = load_params()
    graph, fresh, order = look(targets, force)
    shares = [{}] if fresh.issuperset(graph) else stage_shares(params, parallel)
    return Survey(graph, sorted(fresh), names_in_lock(), order, shares)


def main() -> int:
    """The command line: prints the survey as JSON; returns the exit status."""
    parser = argparse.ArgumentParser("python -m flows.running.survey")
    parser.add_argument("targets", nargs="*")
    parser.add_argument("--force", action="store_true")
    parser.add_argument("--parallel", type=int)
    options = parser.parse_args()
    try:
        print(json.dumps(asdict(_survey(options.targets, options.force, options.parallel))))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
