"""How long the rest of a run of the pipeline will take, from what its stages have taken so far."""

import heapq
from collections.abc import Collection, Mapping

from flows.running.graph import Graph


def seconds_left(
    graph: Graph, ended: Collection[str], running: Mapping[str, float], known: Mapping[str, float], number: int
) -> float:
    """Seconds until the last stage ends, if each starts as `flows.running.schedule` starts it.

    Args:
        graph: stage to the stages it waits for.
        ended: stages that have ended.
        running: stage to the seconds that it still takes.
        known: stage to the seconds that it takes; one that is not there counts as none, so the result is then too low.
        number: of stages that may run at the same time.
    """
    waiting = {
        stage: set(upstream) - set(ended) for stage, upstream in graph.items() if stage not in {*ended, *running}
    }
    clock, ends = 0.0, [(seconds, stage) for stage, seconds in running.items()]
    heapq.heapify(ends)
    while waiting or ends:
        for stage in [stage for stage, upstream in waiting.items() if not upstream][: number - len(ends)]:
            del waiting[stage]
            heapq.heappush(ends, (clock + known.get(stage, 0.0), stage))
        clock, done = heapq.heappop(ends)
        for upstream in waiting.values():
            upstream.discard(done)
    return clock


def in_words(seconds: float) -> str:
    """A duration for a reader: `40 s`, `3 min`, `2 h 10 min`."""
    if seconds < 90:
        return f"{round(seconds)} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
