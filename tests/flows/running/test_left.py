import pytest

from flows.running.graph import Graph
from flows.running.left import in_words, seconds_left

GRAPH: Graph = {"a": [], "b": ["a"], "c": ["a"], "d": ["a"], "e": ["b", "c", "d"]}
TOOK = {"a": 1.0, "b": 10.0, "c": 4.0, "d": 5.0, "e": 2.0}


@pytest.mark.parametrize(
    ("ended", "running", "number", "seconds"),
    [
        ([], {}, 1, 22),  # the sum
        ([], {}, 2, 13),  # a, then b beside c and d, then e
        ([], {}, 3, 13),
        (["a"], {"b": 3.0, "c": 4.0}, 2, 10),  # d starts when b ends: 3 + 5, then e
        (["a", "b", "c", "d"], {"e": 0.5}, 2, 0.5),
        (list(GRAPH), {}, 2, 0),
    ],
)
def test_the_rest_is_what_the_schedule_makes_of_it(
    ended: list[str], running: dict[str, float], number: int, seconds: float
) -> None:
    assert seconds_left(GRAPH, ended, running, TOOK, number) == seconds


def test_a_stage_that_is_not_known_counts_as_none() -> None:
    assert seconds_left(GRAPH, ["a"], {}, {"b": 10.0}, 1) == 10


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.2, "0 s"), (89, "89 s"), (91, "2 min"), (5300, "88 min"), (8000, "2 h 13 min")]
)
def test_durations_in_words(seconds: float, words: str) -> None:
    assert in_words(seconds) == words
