"""The worker's end of the pipe: it runs one iteration each time it is told to, and reports on it.

Workers are processes of their own that wait, doing nothing, while another one runs. Standard library alone.
"""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Reporter:
    """Answers each line on standard input with one iteration's numbers on standard output.

    Args:
        worker: whether this process is a worker; one that is not gives no answers.
    """

    def __init__(self, worker: bool = True) -> None:
        self.out = sys.stdout
        if worker:
            sys.stdout = sys.stderr  # what libraries print must not get between the answers
        self.phases: dict[str, float] = {}
        self.start = self.cpu_start = 0.0
        self.baseline = 0

    def ready(self) -> None:
        """Says that the models are loaded, and waits for the first turn; memory is counted from here."""
        reset_peak()
        self.baseline = resident("VmRSS")
        self._answer({"ready": True})
        self._wait()

    def done(self) -> None:
        """Reports the iteration that was run and waits for the next turn; ends the process when there is none."""
        times = {"seconds": time.perf_counter() - self.start, "cpu_seconds": time.process_time() - self.cpu_start}
        peak = resident("VmHWM")
        memory = {"baseline_bytes": self.baseline, "peak_bytes": peak, "above_bytes": peak - self.baseline}
        self._answer(times | {"phases": self.phases} | memory)
        self._wait()

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Adds the seconds inside to the iteration's `phase`."""
        start = time.perf_counter()
        yield
        self.phases[phase] = self.phases.get(phase, 0.0) + time.perf_counter() - start

    def _answer(self, values: dict[str, Any]) -> None:
        print(json.dumps(values), file=self.out, flush=True)

    def _wait(self) -> None:
        if not sys.stdin.readline():
            sys.exit(0)
        self.phases = {}
        self.start, self.cpu_start = time.perf_counter(), time.process_time()


def resident(field: str) -> int:
    """Bytes of this process in memory: `VmRSS` now, `VmHWM` at most so far."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    (line,) = [line for line in lines if line.startswith(field + ":")]
    return int(line.split()[1]) * 1024


def reset_peak() -> None:
    """Counts the peak from now on."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
