"""Lets this clone work for a pool: `python -m flows.machines.worker --pool NAME`.

It is Prefect's own worker, one stage at a time, with the queues that this machine can serve. It needs the run's server
at the address of prefect.toml, through a tunnel if the server is on another machine (docs/scale.md).
"""

import argparse
import os
import signal
import socket
import sys
from pathlib import Path

from flows.machines.clone import claim
from flows.machines.server import CLONE, CPU, GPU, PROCESS, ensure
from flows.running.devices import accelerators
from flows.serving.server import environment, page, server_answers
from rarlhf.config.errors import UserError

HEARTBEAT = "PREFECT_WORKER_HEARTBEAT_SECONDS"
HEARTBEAT_SECONDS = "10"  # Prefect's server takes a worker for lost after three


def main() -> int:
    """The command line; becomes Prefect's worker, or returns the exit status of a refusal."""
    options = _parser().parse_args()
    try:
        claim()
        if not server_answers():
            raise UserError(f"no Prefect server answers at {page()}; docs/scale.md says how to reach it")
        ensure(options.pool)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    here = str(Path.cwd())
    queues = options.queue or [*[GPU] * bool(accelerators()), CPU]
    # The process's number keeps a restarted worker apart from the one that was lost with its stage.
    name = f"{socket.gethostname()} {Path(here).name} {os.getpid()}"
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", options.pool, "--type", PROCESS]
    command += ["--name", name, "--limit", "1", *(word for queue in queues for word in ("--work-queue", queue))]
    own = {
        CLONE: here,
        HEARTBEAT: os.environ.get(HEARTBEAT, HEARTBEAT_SECONDS),
        "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])),
        "PYTHONPATH": os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH")))),
    }
    print(f"worker {name}: queues {', '.join(queues)} of pool {options.pool}; Ctrl-C ends it", flush=True)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background job would ignore it, and Prefect ends by it
    os.execve(command[0], command, {**environment(), **own})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m flows.machines.worker",
        description="Let this clone run stages for a pool. Nobody should edit files in it meanwhile.",
    )
    parser.add_argument("--pool", required=True, help="name of the pool; it is made if it is not there")
    parser.add_argument(
        "--queue",
        choices=[CPU, GPU],
        action="append",
        help="a queue to serve; repeat for both (default: cpu, and gpu where there is an accelerator)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
