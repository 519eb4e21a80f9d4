"""The order in which stages start: for the flow, whose stages are Prefect's tasks, and for `make repro`."""

from collections.abc import Callable
from functools import partial
from queue import SimpleQueue
from typing import Any, Protocol

from flows.running.graph import Graph


class Started(Protocol):
    """A stage that was started: a future of Python's or of Prefect's."""

    def add_done_callback(self, fn: Callable[[Any], None], /) -> None:
        """Calls `fn` with this future when the stage has ended, in whatever way."""


def in_order(graph: Graph, start: Callable[[str], Started], number: int) -> None:
    """Starts every stage of a graph once those it waits for have ended; returns when all have.

    Of several that may start, the first in the graph's order starts. An exception in `start`, or a signal, leaves the
    rest unstarted.

    Args:
        graph: stage to the stages it waits for, which are all in the graph.
        start: starts a stage, without waiting for it; also called where what the stage waits for has failed.
        number: of stages that may run at the same time.
    """
    ended: SimpleQueue[str] = SimpleQueue()
    waiting = {stage: set(upstream) for stage, upstream in graph.items()}
    running = 0
    while waiting or running:
        for stage in [stage for stage, upstream in waiting.items() if not upstream][: number - running]:
            del waiting[stage]
            running += 1
            start(stage).add_done_callback(partial(_put, ended, stage))
        done = ended.get()
        running -= 1
        for upstream in waiting.values():
            upstream.discard(done)


def _put(ended: "SimpleQueue[str]", stage: str, _future: object) -> None:
    ended.put(stage)
