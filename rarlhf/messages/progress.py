"""How a long step shows its progress and hands on its numbers; it knows no tracking tool."""

import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

from rarlhf.system.launch import first_process

LINE_EVERY_SECONDS = 10.0
LINE = re.compile(r".* (\d+/\d+) .*\(\d+ s, about (\d+) s left\)")  # as written below: how far it is, and seconds left
Update = Callable[[int, str], None]


class Recorder(Protocol):
    """Takes the numbers of a run while it goes on."""

    def record(self, step: int, values: Mapping[str, float]) -> None:
        """Records `values` at `step`; names have groups, as in `objective/kl`."""

    def say(self, text: str) -> None:
        """Prints a line for the person who watches."""


@runtime_checkable
class SampleRecorder(Protocol):
    """A recorder that also takes samples of responses."""

    def samples(self, rows: Sequence[Mapping[str, object]]) -> None:
        """Records rows with `iteration`, `prompt`, `continuation`, `score` and `kept`."""


class SilentRecorder:
    """Records nothing and prints nothing; for notebooks and tests."""

    def record(self, step: int, values: Mapping[str, float]) -> None:
        """Drops the numbers."""

    def say(self, text: str) -> None:
        """Drops the line."""


@contextmanager
def progress(name: str, total: int) -> Iterator[Update]:
    """A bar in a terminal; elsewhere a line at most every ten seconds, and one at the end.

    Yields a function to be called with the number of steps done so far and a short text.
    """
    if not first_process():
        yield lambda done, text: None
    elif sys.stderr.isatty():
        yield from _bar(name, total)
    else:
        yield from _lines(name, total)


def _bar(name: str, total: int) -> Iterator[Update]:
    from tqdm import tqdm

    with tqdm(total=total, desc=name, dynamic_ncols=True, leave=True) as bar:

        def update(done: int, text: str) -> None:
            bar.set_postfix_str(text, refresh=False)
            bar.update(done - bar.n)

        yield update


def _lines(name: str, total: int) -> Iterator[Update]:
    start = shown = time.monotonic()

    def update(done: int, text: str) -> None:
        nonlocal shown
        now = time.monotonic()
        if done >= total or now - shown >= LINE_EVERY_SECONDS:
            shown = now
            left = (now - start) / max(done, 1) * (total - done)
            print(f"{name} {done}/{total} {text} ({now - start:.0f} s, about {left:.0f} s left)", flush=True)

    yield update


def short(record: Mapping[str, float]) -> str:
    """The few numbers of a PPO iteration that a progress bar shows."""
    return (
        f"score {record['objective/score_mean']:+.2f} tail {record['risk/score_cvar']:+.2f} "
        f"KL {record['objective/kl']:.2f} kept {record['risk/kept']:.0f}"
    )
