"""One process for a whole run of the pipeline that forks to track each stage: `python -m tasks.tracking.forks FILE`.

MLflow takes seconds to import. This process imports it once and opens nothing; each fork then opens the store for one
run, and does what tasks.tracking.worker does. Its standard input is a pipe from the pipeline's run, whose end ends it.
Forks that still track a run then go on until that is closed.
"""

import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tasks.tracking.store import import_mlflow, store_uri
from tasks.tracking.worker import track
from tasks.tracking.workers import ADDRESS, REPOSITORY


@contextmanager
def tracking_process(folder: Path) -> Iterator[None]:
    """Stages that start in this context are tracked by forks of one process, once that has imported MLflow.

    Args:
        folder: of the pipeline's run.
    """
    path = os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH"))))
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "tasks.tracking.forks", str(folder / ADDRESS)],
            stdin=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
            process_group=0,  # Ctrl-C is for the stages
        )
    except OSError:  # each stage then has a process of its own
        yield
        return
    try:
        yield
    finally:
        process.communicate()


def main(address: str) -> int:
    """Forks until the standard input ends; returns the exit status."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the pipeline's run decides when this ends
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks how a fork ended
    import_mlflow(store_uri(Path.cwd()))
    with socket.socket(socket.AF_UNIX) as listener:
        try:
            listener.bind(address)
        except OSError:  # such as a path too long for an address: each stage has a process of its own
            return 0
        listener.listen()
        while listener in select.select([listener, sys.stdin], [], [])[0]:  # those that wait at the end too
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                _track(connection)
                return 0
            connection.close()
    return 0


def _track(connection: socket.socket) -> None:
    """Follows the calls of one stage, in a fork."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _, (errors,), _, _ = socket.recv_fds(connection, 1, 1)
    for stream in (1, 2):  # nothing that a library prints is an answer
        os.dup2(errors, stream)
    os.close(errors)
    with connection, connection.makefile("r", encoding="utf-8") as calls, connection.makefile("w") as answers:
        track(calls, answers)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
