"""Sends to MLflow in the background. What does not arrive is kept and sent again, so that nothing waits for MLflow."""

import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tasks.tracking.passwords import without_passwords

RETRY_SECONDS = 30.0
TROUBLE_SECONDS = 300.0  # how long nobody waits again for a store that did not answer
NEVER_WILL = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS", "INVALID_STATE")
Job = Callable[[], object]


class Sender:
    """Does jobs one after another in a thread of its own; nothing here raises.

    A job that fails stays first in line. It is tried again every `RETRY_SECONDS` and once at the end. A job that MLflow
    refuses for good is left out. The first failure prints one line, and so does the first success after it.

    Args:
        trouble: file that exists while the store does not answer. All processes of a repository share it, so that only
            one of many short stages waits and warns.
        patience: seconds that `finish` waits without a job being done.
    """

    def __init__(self, trouble: Path, patience: float) -> None:
        self._trouble = trouble
        self._patience = patience
        self._known = _is_recent(trouble)
        self._warned = self._refused = False
        self._jobs: deque[tuple[Job, bool]] = deque()
        self._done = 0
        self._closing = False
        self._wake = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()

    def add(self, job: Job, needed: bool = False) -> None:
        """Adds a job. A `needed` one is never left out, because later jobs depend on it."""
        with self._wake:
            self._jobs.append((job, needed))
            self._wake.notify_all()

    def wait(self, seconds: float) -> None:
        """Waits up to `seconds` until everything is sent."""
        with self._wake:
            self._wake.wait_for(lambda: not self._jobs, seconds)

    def finish(self) -> bool:
        """Waits until everything is sent or cannot be; returns whether it was."""
        with self._wake:
            self._closing = True
            self._wake.notify_all()
        done, since = -1, 0.0
        while self._thread.is_alive():
            if self._done != done:
                done, since = self._done, time.monotonic()
            unheard = self._known and self._done == 0
            if unheard or time.monotonic() - since > self._patience:
                break
            self._thread.join(0.02)
        if self._jobs:
            self._trouble_is_there()
            self.warn(TimeoutError(f"no answer in {self._patience:.0f} s"))
        return not self._jobs

    def warn(self, error: Exception) -> None:
        """Prints one line, once, that tracking fails; none where another process has just printed it."""
        if not (self._warned or self._known):
            _say(f"warning: MLflow tracking fails and is tried again; nothing else is affected: {_line(error)}")
        self._warned = True

    def refuse(self, error: Exception) -> None:
        """Prints one line, once, that something is left out."""
        if not self._refused:
            warn_incomplete(error)
        self._refused = True

    def _work(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._jobs or self._closing)
                if not self._jobs:
                    return
                job, needed = self._jobs[0]
            try:
                job()
            except Exception as error:
                if needed or _may_pass(error):
                    if self._rest(error):
                        return
                    continue
                self.refuse(error)
            else:
                self._recovered()
            with self._wake:
                self._jobs.popleft()
                self._done += 1
                self._wake.notify_all()

    def _rest(self, error: Exception) -> bool:
        """Waits for the next try after a failure; returns whether there is none."""
        self._trouble_is_there()
        self.warn(error)
        with self._wake:
            last = self._closing
            self._wake.wait_for(lambda: self._closing, RETRY_SECONDS)
            return last

    def _trouble_is_there(self) -> None:
        with suppress(OSError):
            self._trouble.touch()

    def _recovered(self) -> None:
        if self._trouble.exists():
            with suppress(OSError):
                self._trouble.unlink()
            if self._warned or self._known:
                _say("MLflow answers again; what was kept is sent now")
        self._warned = self._known = False


def warn_incomplete(error: Exception) -> None:
    """Prints one line that something is left out."""
    _say(f"warning: MLflow tracking is not complete; nothing else is affected: {_line(error)}")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _line(error: Exception) -> str:
    return without_passwords(" ".join(str(error).split()))[:200] or type(error).__name__


def _is_recent(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime < TROUBLE_SECONDS
    except OSError:
        return False


def _may_pass(error: Exception) -> bool:
    """Whether the same call may succeed later; not where the request itself is wrong."""
    if isinstance(error, FileNotFoundError | ValueError | TypeError | LookupError):
        return False
    return getattr(error, "error_code", "") not in NEVER_WILL
