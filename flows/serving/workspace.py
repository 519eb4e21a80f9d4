"""One run at a time works in a workspace: a locked file says which. No import of Prefect, so that it takes no time."""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

HOME = ".prefect"
LOCK = Path(HOME, "run.lock")


@contextmanager
def hold_workspace(say: Callable[[str], object]) -> Iterator[int]:
    """Waits until no other run works in this workspace; yields the number of the open file that holds it.

    Args:
        say: is given a line where it has to wait.
    """
    LOCK.parent.mkdir(exist_ok=True)
    with LOCK.open("a+") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another run works in this workspace; waiting for its end")
            fcntl.flock(stream, fcntl.LOCK_EX)
        stream.truncate(0)
        stream.write(str(os.getpid()))
        stream.flush()
        yield stream.fileno()


def holder() -> int | None:
    """Id of the process whose run holds the workspace, even if only its stages still run; None if it is free."""
    with suppress(FileNotFoundError), LOCK.open("r+") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return int(stream.read() or 0)
    return None
