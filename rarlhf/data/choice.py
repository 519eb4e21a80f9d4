"""Random choices of rows: a number, a share of the wanted class, or a share of each class; seeded."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from fractions import Fraction
from math import floor
from random import Random

from rarlhf.data.rows import Row

Parts = tuple[list[Row], list[Row]]  # the chosen rows and the others, each in the old order


def choose(rows: Sequence[Row], number: int | None, seed: str) -> Parts:
    """Splits the rows into a choice of `number` (None: all) and the others."""
    order = list(range(len(rows)))
    Random(f"data/{seed}").shuffle(order)
    return _parted(rows, set(order[:number]))


def choose_with_share(rows: Sequence[Row], number: int | None, share: float, seed: str) -> Parts:
    """Splits the rows into a choice with `share` of the wanted class, and the others.

    Takes as many rows as the share allows, at most `number`; the share is exact to within one row.
    """
    wanted, exact = sum(row.label == 1 for row in rows), Fraction(str(share))
    room = min(floor(wanted / exact), floor((len(rows) - wanted) / (1 - exact)))
    total = room if number is None else min(number, room)
    of_wanted = round(total * exact)
    return _parted(rows, _drawn(rows, {1: of_wanted, 0: total - of_wanted}, seed))


def part_of_each_class(rows: Sequence[Row], share: float, seed: str) -> Parts:
    """Splits the rows into a choice that holds `share` of each class, to within one row, and the others."""
    exact = Fraction(str(share))
    sizes = Counter(row.label for row in rows)
    counts = {label: round(exact * size) for label, size in sizes.items()}
    return _parted(rows, _drawn(rows, counts, seed))


def _drawn(rows: Sequence[Row], counts: Mapping[int | None, int], seed: str) -> set[int]:
    """Indices of the given number of rows from each class."""
    drawn: set[int] = set()
    for label, count in counts.items():
        of_class = [index for index, row in enumerate(rows) if row.label == label]
        Random(f"data/{seed}/{label}").shuffle(of_class)
        drawn |= set(of_class[:count])
    return drawn


def _parted(rows: Sequence[Row], chosen: Collection[int]) -> Parts:
    kept = [row for index, row in enumerate(rows) if index in chosen]
    return kept, [row for index, row in enumerate(rows) if index not in chosen]
