"""Whether two runs were tested alike. If not, their difference would not be that of the methods."""

from collections.abc import Sequence

import numpy as np

from rarlhf.config.errors import UserError
from rarlhf.evaluation.compare_runs import MeasuredRun
from rarlhf.evaluation.compare_sources import METRICS
from rarlhf.evaluation.comparisons import TestSet
from rarlhf.evaluation.generations import Tables
from rarlhf.evaluation.words import listed

DECIDING = ("data.", "prompts.", "reward.")  # sections that decide the test prompts and their scores


def check_same_metrics(a: MeasuredRun, b: MeasuredRun) -> None:
    """Raises UserError if the numbers of the two runs have other definitions."""
    if a.definitions != b.definitions:
        old, new = sorted((a, b), key=lambda run: run.definitions)
        raise UserError(
            f"{METRICS} of {old.name} has version {old.definitions} of the definitions and that of {new.name} version "
            f"{new.definitions}: evaluate {old.name} again with the later code (`dvc repro evaluate`)"
        )


def check_same_tables(tables: Tables, names: tuple[str, str]) -> None:
    """Raises UserError saying which of samples, prompts and prompt scores differ between two runs.

    Args:
        tables: A's and B's generations by seed.
        names: of the runs.
    """
    (_, first), (_, second) = ((side, next(iter(by_seed.values()))) for side, by_seed in tables.items())
    a, b = names
    (prompts, samples), (others, other_samples) = first.scores.shape, second.scores.shape
    if samples != other_samples:
        raise _unlike_samples(names, samples, other_samples)
    if first.prompts != second.prompts or not np.array_equal(first.prompt_ids, second.prompt_ids):
        raise UserError(
            f"{a} and {b} answer other test prompts ({prompts} and {others}), and differences are paired by prompt: "
            "give both the same sections data and prompts, and run `dvc repro`"
        )
    apart = float(np.abs(first.prompt_scores - second.prompt_scores).max())
    if apart > 0:
        raise UserError(
            f"{a} and {b} score the same test prompts differently (by up to {apart:.2g}), so they have other scorers: "
            "give both the same section reward and the same models/reward, and run `dvc repro`"
        )


def check_same_prompts(a: MeasuredRun, b: MeasuredRun, changed: Sequence[tuple[str, object, object]]) -> TestSet:
    """What two runs without generations were tested on.

    Raises: UserError if it differs, or params differ that decide the test prompts and their scores, or a run has no
        evaluation.
    """
    for run, other in ((a, b), (b, a)):
        if run.evaluation is None:
            raise UserError(
                f"{run.name} has no {METRICS}, and {other.name} has no generations ({other.source.lacking}): run "
                f"`dvc repro evaluate` for {run.name}"
            )
    assert a.evaluation is not None and b.evaluation is not None
    first, second = a.evaluation["test"], b.evaluation["test"]
    if first["samples"] != second["samples"]:
        raise _unlike_samples((a.name, b.name), first["samples"], second["samples"])
    if first != second:
        raise UserError(
            f"{a.name} was tested on {_told(first)} and {b.name} on {_told(second)}: give both the same sections data, "
            "prompts and evaluate, and run `dvc repro`"
        )
    deciding = [key for key, _, _ in changed if key.startswith(DECIDING)]
    if deciding:
        without = listed(run.name for run in (a, b) if not run.has_generations)
        raise UserError(
            f"{a.name} and {b.name} differ in {listed(deciding)}, and without the generations of {without} nothing "
            "shows whether test prompts and scorer are the same: get the generations "
            f"({(b if a.has_generations else a).source.lacking})"
        )
    return first


def _told(test: TestSet) -> str:
    return f"{test['prompts']} prompts with a tail of {test['tail_prompts']} ({test['tail_rule']})"


def _unlike_samples(names: tuple[str, str], first: int, second: int) -> UserError:
    return UserError(
        f"{names[0]} has {first} samples per test prompt and {names[1]} has {second}, on which tails depend: give both "
        "the same generate.samples, and run `dvc repro`"
    )
