"""The deployments, their server and their worker on this machine: `python -m flows.serving.deploy up`, and `down`.

.prefect/processes.json holds what was started, so that `down` ends exactly that, however much later.

Prefect's own commands would lose two things. `prefect server stop` ends the process that has the server's number now,
which may be any program after a restart. `flow.serve`, instead of a worker, takes its runs along when it is killed:
they crash within 3 s, where a worker's run goes on to its end.
"""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import psutil

from flows.serving.runs import cancel_runs, close_lost_runs, end_orphan, worker_is_online
from flows.serving.server import STARTUP_SECONDS, environment, own_server_answers, page, server_command
from flows.serving.workspace import HOME
from rarlhf.config.errors import UserError
from rarlhf.system.files import replaced
from tasks.tracking.passwords import without_passwords

POOL = "local"
RECORD = Path(HOME, "processes.json")
RUN_SECONDS = 40.0  # for runs to end: 20 s for their stages, the rest for Prefect
STOP_SECONDS = 15.0


def up() -> None:
    """Starts what does not run yet, and creates the deployments of prefect.yaml.

    Raises: UserError if the address is taken by something else, or if something does not start.
    """
    Path(HOME).mkdir(exist_ok=True)
    alive = running()
    if own_server_answers():
        whose = _named(alive["server"]) if "server" in alive else "not of `make deploy`; `make stop` leaves it alone"
        print(f"server: runs already, {page()} ({whose})", flush=True)
    else:
        started = _start("server", server_command(), own_server_answers)
        print(f"server: started, {page()} ({_named(started)})", flush=True)
    for name in [] if "worker" in alive else close_lost_runs():
        print(f"run {name}: its process is gone; it counts as crashed now", flush=True)
    _prefect("work-pool", "create", POOL, "--type", "process", "--overwrite")
    _prefect("--no-prompt", "deploy", "--all")
    if "worker" in alive:
        print(f"worker: runs already ({_named(alive['worker'])})", flush=True)
    else:
        print(f"worker: started ({_named(_start_worker())})", flush=True)
    print("deployment: rarlhf/full\n\n  .venv/bin/prefect deployment run rarlhf/full --watch\n\n`make stop` ends both.")


def down() -> None:
    """Ends what `up` started: the flow's runs first, then the worker, then the server."""
    alive = running()
    if not alive:
        print("nothing that `make deploy` started is running")
    if "worker" in alive and _answers():
        for name in cancel_runs(RUN_SECONDS):
            print(f"run {name}: cancelled", flush=True)
    if alive and end_orphan(RUN_SECONDS):
        print("a run without a worker: ended", flush=True)
    for role in ("worker", "server"):  # without its server a worker would wait
        if role in alive:
            print(f"{role}: {_end(alive[role])} ({_named(alive[role])})", flush=True)
    RECORD.unlink(missing_ok=True)


def running() -> dict[str, psutil.Process]:
    """The processes of the record that still run, by role; a later process with the same number does not count."""
    found = {}
    for role, (pid, start) in _read().items():
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            if abs(process.create_time() - start) < 1 and process.status() != psutil.STATUS_ZOMBIE:
                found[role] = process
    return found


def _start_worker() -> psutil.Process:
    now = datetime.now(UTC)
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, "--type", "process"]
    return _start("worker", command, lambda: worker_is_online(POOL, now))


def _start(role: str, command: list[str], ready: Callable[[], bool]) -> psutil.Process:
    """Starts a process that outlives this one, records it, and waits until it is ready."""
    log = Path(HOME, f"{role}.log")
    with log.open("w") as stream:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=environment(),
            start_new_session=True,
        )
    process = psutil.Process(child.pid)
    _write(_read() | {role: (child.pid, process.create_time())})
    end = time.monotonic() + STARTUP_SECONDS
    while not ready():
        if child.poll() is not None or time.monotonic() > end:
            told = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
            raise UserError(without_passwords(f"the {role} did not start; {log} tells why: {' '.join(told)}"))
        time.sleep(0.5)
    return process


def _prefect(*words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "prefect", *words], env=environment(), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise UserError(without_passwords(f"`prefect {' '.join(words)}` failed: {(done.stdout + done.stderr).strip()}"))


def _answers() -> bool:
    try:
        return own_server_answers()
    except UserError:
        return False


def _end(process: psutil.Process) -> str:
    """Ends a process; returns how."""
    for number, told in ((signal.SIGTERM, "ended"), (signal.SIGKILL, "killed")):
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)
        if not psutil.wait_procs([process], STOP_SECONDS)[1]:
            return told
    return "does not end"


def _named(process: psutil.Process) -> str:
    return f"process {process.pid}"


def _read() -> dict[str, tuple[int, float]]:
    try:
        return dict(json.loads(RECORD.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def _write(record: dict[str, tuple[int, float]]) -> None:
    with replaced(RECORD) as partial:
        partial.write_text(json.dumps(record), encoding="utf-8")


def main() -> int:
    """The command line; returns the exit status."""
    words = {"up": up, "down": down}
    if len(sys.argv) != 2 or sys.argv[1] not in words:
        print("usage: python -m flows.serving.deploy {up|down}", file=sys.stderr)
        return 2
    try:
        words[sys.argv[1]]()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
