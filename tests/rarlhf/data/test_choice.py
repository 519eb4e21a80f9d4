"""Rows chosen by class share and split by class, by hand numbers."""

import pytest

from rarlhf.data.choice import choose, choose_with_share, part_of_each_class
from rarlhf.data.rows import Row


def rows(wanted: int, unwanted: int) -> list[Row]:
    """So many rows of each class, one class after the other."""
    labels = [1] * wanted + [0] * unwanted
    return [Row(f"row {index}", label) for index, label in enumerate(labels)]


def labels(chosen: list[Row]) -> tuple[int, int]:
    """Rows of the wanted class, and of the other."""
    return sum(row.label == 1 for row in chosen), sum(row.label == 0 for row in chosen)


@pytest.mark.parametrize(
    ("wanted", "unwanted", "share", "number", "expected"),
    [
        (100, 30, 0.7, None, (70, 30)),  # 30 / 0.3 = 100 rows
        (35, 30, 0.7, None, (35, 15)),  # 35 / 0.7 = 50 rows
        (100, 30, 0.7, 11, (8, 3)),  # 0.7 x 11 = 7.7
        (100, 30, 0.7, 1000, (70, 30)),
        (13, 22, 0.5, None, (13, 13)),
        (300, 31, 0.7, None, (72, 31)),  # 31 / 0.3 = 103.3: 103 rows, 72.1 of them wanted
    ],
)
def test_the_share_is_that_of_as_many_rows_as_there_are(
    wanted: int, unwanted: int, share: float, number: int | None, expected: tuple[int, int]
) -> None:
    every = rows(wanted, unwanted)
    chosen, others = choose_with_share(every, number, share, "x")
    assert labels(chosen) == expected
    assert sorted(row.text for row in [*chosen, *others]) == sorted(row.text for row in every)
    assert chosen == [row for row in every if row in chosen], "the order is kept"


def test_the_papers_numbers_of_rows() -> None:
    # RTP: 20 % of each class is for testing; then 70 % wanted of the training rows and 50 % of the test rows
    every = rows(wanted=77_000, unwanted=21_744)
    test, train = part_of_each_class(every, 0.2, "split")
    assert labels(test) == (15_400, 4_349)
    assert labels(train) == (61_600, 17_395)
    assert len(choose_with_share(train, None, 0.7, "train")[0]) == 57_983
    assert len(choose_with_share(test, None, 0.5, "test")[0]) == 8_698


@pytest.mark.parametrize(
    "draw",
    [
        lambda every, seed: choose(every, 20, seed),
        lambda every, seed: choose_with_share(every, 20, 0.5, seed),
        lambda every, seed: part_of_each_class(every, 0.5, seed),
    ],
)
def test_the_seed_decides_and_not_the_order_of_the_source(draw: object) -> None:
    every = rows(40, 40)
    assert draw(every, "a") == draw(every, "a")
    assert draw(every, "a") != draw(every, "b")
    chosen = draw(every, "a")[0]
    assert chosen not in (every[: len(chosen)], every[-len(chosen) :])
