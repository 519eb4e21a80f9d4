"""A page of an ablation: what is printed, and the files that are written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rarlhf.evaluation.statistics import Difference, Spread, distinguishable
from rarlhf.evaluation.tables import NONE, difference_text, with_half_width
from rarlhf.evaluation.words import percent


@dataclass(frozen=True)
class Page:
    """One page.

    Attributes:
        name: of its files, without suffix.
        terminal: for a terminal.
        markdown: the same as Markdown, with its heading.
        rows: a heading, then lines of numbers, for CSV.
        content: for JSON.
        png: its picture; None if it has none.
        runs: label, tags and metrics of each of its rows, for MLflow.
    """

    name: str
    terminal: str
    markdown: str
    rows: Sequence[Sequence[object]]
    content: Mapping[str, Any]
    png: bytes | None = None
    runs: Sequence[tuple[str, Mapping[str, str], Mapping[str, float]]] = ()


def spread_text(spread: Spread | None, confidence: float) -> str:
    """`mean ±half-width`; a dash where there is no value."""
    return NONE if spread is None else with_half_width(spread, confidence)


def marked_difference(difference: Difference | None) -> str:
    """`+0.31 [0.10, 0.52] *`, the star where the interval leaves out zero; a dash where there is no value."""
    if difference is None:
        return NONE
    return difference_text(difference) + (" *" if distinguishable(difference["interval"]) else "")


def chance_note(compared: int, confidence: float) -> str:
    """What the differences' intervals and stars are."""
    return (
        f"differences are paired by seed, with their {percent(confidence)} intervals; *: the interval leaves out zero, "
        f"as about {compared * (1 - confidence):.1f} of these {compared} would by chance alone"
    )


def difference_columns(difference: Difference | None) -> list[object]:
    """Mean, ends of the interval and number of seeds, for CSV; empty where there is none."""
    if difference is None:
        return ["", "", "", 0]
    ends: Sequence[object] = difference["interval"] or ("", "")
    return [difference["mean"], *ends, difference["n"]]
