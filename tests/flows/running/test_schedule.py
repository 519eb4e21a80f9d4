from concurrent.futures import Future
from threading import Event, Thread

import pytest

from flows.running.graph import Graph
from flows.running.schedule import in_order

DIAMOND: Graph = {"a": [], "b": ["a"], "c": ["a"], "d": ["a"], "e": ["b", "c"], "f": ["d"]}


def started(ends: str, number: int) -> tuple[str, int]:
    """The stages in the order of their starts, and the most that ran at once, where they end in the order of `ends`."""
    futures: dict[str, Future[None]] = {stage: Future() for stage in DIAMOND}
    begun = {stage: Event() for stage in DIAMOND}
    order, most = "", 0

    def start(stage: str) -> Future[None]:
        nonlocal order, most
        order += stage
        most = max(most, sum(not futures[name].done() for name in order))
        begun[stage].set()
        return futures[stage]

    def end() -> None:
        for stage in ends:
            begun[stage].wait(20)
            futures[stage].set_result(None)

    thread = Thread(target=end)
    thread.start()
    in_order(DIAMOND, start, number)
    thread.join()
    return order, most


@pytest.mark.parametrize(
    ("ends", "number", "order"),
    [
        ("abcdef", 1, "abcdef"),
        ("abcdef", 2, "abcdef"),
        ("abdfce", 2, "abcdfe"),  # c outlives b and d: f starts before e, which waits for c
        ("adfbce", 3, "abcdfe"),
    ],
)
def test_a_free_place_goes_to_the_first_that_may_start(ends: str, number: int, order: str) -> None:
    assert started(ends, number) == (order, number)


def test_an_error_leaves_the_rest_unstarted() -> None:
    begun = []

    def start(stage: str) -> Future[None]:
        begun.append(stage)
        if stage == "b":
            raise KeyboardInterrupt
        future: Future[None] = Future()
        future.set_result(None)
        return future

    with pytest.raises(KeyboardInterrupt):
        in_order(DIAMOND, start, 1)
    assert begun == ["a", "b"]
