"""Samples that the report quotes: which prompts of the tail it shows, and how it writes texts of others."""

from dataclasses import dataclass
from unicodedata import category

import numpy as np

from rarlhf.evaluation.comparisons import any_table
from rarlhf.evaluation.generations import BoolArray, Tables
from rarlhf.evaluation.tables import number

KEPT = "\n\t\u200c\u200d\u200e\u200f"  # line feed, tab, zero-width joiners, direction marks


@dataclass(frozen=True)
class Answer:
    """What one method wrote to a prompt."""

    method: str
    text: str
    score: str


@dataclass(frozen=True)
class TailSample:
    """One tail prompt with every method's answer beside each other."""

    prompt: str
    prompt_score: str
    answers: tuple[Answer, ...]


def tail_samples(tables: Tables, tail: BoolArray, count: int, seed: int) -> list[TailSample]:
    """Prompts of the tail drawn at random, with the first seed's first continuation of every method.

    Args:
        tables: generations of every method and seed.
        tail: (P,) bool, the prompt tail.
        count: prompts to draw, fewer where the tail is smaller.
        seed: of the draw, so that nobody picks the samples.

    Returns: prompts by ascending id, methods in the order of `tables`.
    """
    candidates = np.flatnonzero(tail)
    drawn = np.random.default_rng(seed).choice(candidates, size=min(count, len(candidates)), replace=False)
    return [_tail_sample(tables, int(index)) for index in np.sort(drawn)]


def _tail_sample(tables: Tables, index: int) -> TailSample:
    first = {method: next(iter(by_seed.values())) for method, by_seed in tables.items()}
    answers = tuple(
        Answer(method, table.continuations[index][0], number(float(table.scores[index, 0])))
        for method, table in first.items()
    )
    table = any_table(tables)
    return TailSample(table.prompts[index], number(float(table.prompt_scores[index])), answers)


def visible(text: str) -> str:
    """The text with every character that would change how it is displayed written as an escape in hexadecimal.

    Those are control characters but for line feed and tab, the invisible format characters of Unicode (overrides of
    writing direction, zero-width spaces, tags), and halves of surrogate pairs, which cannot be written as UTF-8. The
    joiners and direction marks that scripts and emoji need stay as they are.
    """
    if text.isascii() and text.isprintable():  # most texts, without asking of each character
        return text
    return "".join(c if _is_plain(c) else c.encode("unicode_escape").decode() for c in text)


def _is_plain(character: str) -> bool:
    return character in KEPT or category(character) not in {"Cc", "Cf", "Cs", "Zl", "Zp"}
