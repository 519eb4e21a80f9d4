"""Numbers and names within sentences."""

from collections.abc import Iterable


def percent(share: float) -> str:
    """A share as text without rounding it away: 0.95 is `95%`, 0.995 is `99.5%`."""
    return f"{round(share * 100, 10):g}%"


def counted(number: int, noun: str) -> str:
    """`1 seed`, `3 seeds`, `1,200 prompts`, for nouns that take an s."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def listed(items: Iterable[object]) -> str:
    """`1, 2, 3`."""
    return ", ".join(map(str, items))


def joined(names: Iterable[str]) -> str:
    """`SFT`, `SFT and RLHF`, `SFT, RLHF and RA-RLHF`."""
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last
