"""Pictures and tables that stages show in MLflow; no output of a stage depends on them, so dvc.yaml names none."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.running.stage import Run

SAMPLE_ROWS = 50  # continuations shown of each seed


def track_training(run: Run, method: str, seed: int, curve: Path) -> None:
    """The training curve of one PPO run, as csv and as figure."""
    from rarlhf.evaluation.curves import read_run
    from rarlhf.evaluation.figures import training_curves

    run.tracker.artifact(curve, "curve")
    figure = training_curves({method: {seed: read_run(curve)}}, run.params.kl.target)
    if figure is not None:
        run.tracker.figure(figure, "training.png")


def track_samples(run: Run, seed: int, rows: Sequence[Mapping[str, Any]]) -> None:
    """The first continuations of a seed as a table, with their scores."""
    columns = ("prompt", "continuation", "prompt_score", "score")
    table = [{"seed": seed, **{name: row[name] for name in columns}} for row in rows[:SAMPLE_ROWS]]
    run.tracker.table(table, f"samples_seed_{seed}.json")
