import pytest

from rarlhf.evaluation.words import counted, joined, listed, percent


@pytest.mark.parametrize(("number", "text"), [(0, "0 seeds"), (1, "1 seed"), (3, "3 seeds"), (1200, "1,200 seeds")])
def test_counted(number: int, text: str) -> None:
    assert counted(number, "seed") == text


def test_joined() -> None:
    assert [joined(["a"]), joined(["a", "b"]), joined(["a", "b", "c"])] == ["a", "a and b", "a, b and c"]


def test_listed() -> None:
    assert listed([1, 2]) == "1, 2"


def test_percent_does_not_round_away() -> None:
    assert [percent(0.95), percent(0.995), percent(0.1), percent(0.29)] == ["95%", "99.5%", "10%", "29%"]
