"""The order of the stages in dvc.lock. DVC adds a stage when it has ended, and which of two ends first is chance."""

import re
from collections.abc import Sequence
from pathlib import Path

from rarlhf.system.files import replaced

LOCKFILE = Path("dvc.lock")
HEAD = "schema: '2.0'\nstages:\n"
ENTRY = re.compile(r"^(?=  \S)", re.MULTILINE)  # before each stage's entry


def names_in_lock() -> list[str]:
    """The stages that dvc.lock has, in its order; empty where it has none or is not of DVC's form."""
    return [_name(entry) for entry in _entries() or []]


def order_lock(before: Sequence[str], order: Sequence[str]) -> None:
    """Puts the entries of dvc.lock into the order in which stages one after another would have left them.

    Args:
        before: the stages that it had before the run, which keep their order.
        order: all stages in the order in which DVC runs them; new ones follow in it.
    """
    entries = _entries()
    if entries is None:
        return
    places = {name: place for place, name in enumerate(dict.fromkeys([*before, *order]))}
    ordered = sorted(entries, key=lambda entry: places.get(_name(entry), len(places)))
    if ordered != entries:
        with replaced(LOCKFILE) as partial:
            partial.write_text(HEAD + "".join(ordered), encoding="utf-8")


def _entries() -> list[str] | None:
    """The text of each stage's entry; None where there is no dvc.lock, or one with more than stages."""
    try:
        head, *entries = ENTRY.split(LOCKFILE.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    if head != HEAD or not all(entry.endswith("\n") and "\n" not in _top(entry) for entry in entries):
        return None
    return entries


def _top(entry: str) -> str:
    """The lines of an entry that are not indented below its name, without the name's line break."""
    return "".join(line for line in entry.splitlines(keepends=True) if not line.startswith("    ")).removesuffix("\n")


def _name(entry: str) -> str:
    return entry.partition(":\n")[0].strip().strip("'\"")
