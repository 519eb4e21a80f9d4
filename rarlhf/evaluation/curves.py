"""Lines for figures and `dvc plots`: reward by prompt quantile, outcome CVaR by level, training by iteration."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from rarlhf.errors import UserError
from rarlhf.evaluation.metrics import cvar_curve, quantile_curve
from rarlhf.evaluation.rows import FloatArray, Tables

PERCENTS = tuple(range(1, 101))
ALPHAS = tuple(percent / 100 for percent in PERCENTS)
TRAINING_COLUMNS: Mapping[str, str] = {  # column of the training csv -> name in plots/training.csv
    "objective/score_mean": "score_mean",
    "risk/score_cvar": "score_cvar",
    "objective/kl": "kl",
    "objective/kl_coef": "kl_coef",
    "risk/kept": "kept",
}

Curves = Mapping[str, FloatArray]  # method -> (S, points)
TrainingRun = Mapping[str, FloatArray]  # name -> (M,), `iteration` among them
TrainingCurves = Mapping[str, Mapping[int, TrainingRun]]  # method -> seed -> run


def quantile_curves(tables: Tables) -> Curves:
    """Mean reward over the first x % of prompts by prompt score, x = 1..100: method -> (S, 100)."""
    return {
        method: np.stack([quantile_curve(t.prompt_scores, t.scores, PERCENTS) for t in by_seed.values()])
        for method, by_seed in tables.items()
    }


def cvar_curves(tables: Tables) -> Curves:
    """CVaR of the mixture of prompts and samples at alpha = 0.01..1: method -> (S, 100)."""
    return {
        method: np.stack([cvar_curve(t.scores, ALPHAS) for t in by_seed.values()]) for method, by_seed in tables.items()
    }


def read_training(folder: Path, methods: Sequence[str], seeds: Sequence[int]) -> TrainingCurves:
    """Read curves/METHOD/SEED.csv of the methods that have such a folder (those trained by PPO).

    Raises: UserError if a seed's file is missing, empty, or lacks a column.
    """
    trained = [method for method in methods if (folder / method).is_dir()]
    return {method: {seed: _read_run(folder / method / f"{seed}.csv") for seed in seeds} for method in trained}


def _read_run(path: Path) -> TrainingRun:
    where = f"{path.parent.name}/{path.name}"
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        columns = {"iteration": "iteration", **TRAINING_COLUMNS}
        run = {name: np.array([float(row[column]) for row in rows]) for column, name in columns.items()}
    except FileNotFoundError:
        raise UserError(f"training curve {where} is missing: run its stage again") from None
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"training curve {where} is broken ({error}): run its stage again") from None
    if not rows:
        raise UserError(f"training curve {where} has no rows: run its stage again")
    return run


def write_plot_data(folder: Path, quantiles: Curves, tails: Curves, training: TrainingCurves) -> None:
    """Write reward_quantile.csv, cvar_curve.csv (means over seeds) and training.csv (every seed) for `dvc plots`."""
    _write(folder / "reward_quantile.csv", ("method", "quantile", "reward"), _long(quantiles, PERCENTS))
    _write(folder / "cvar_curve.csv", ("method", "alpha", "cvar"), _long(tails, ALPHAS))
    names = ("iteration", *TRAINING_COLUMNS.values())
    rows = (
        (method, seed, int(numbers[0]), *map(float, numbers[1:]))
        for method, runs in training.items()
        for seed, run in runs.items()
        for numbers in zip(*(run[name] for name in names), strict=True)
    )
    _write(folder / "training.csv", ("method", "seed", *names), rows)


def _long(curves: Curves, points: Sequence[float]) -> Iterable[tuple[object, ...]]:
    for method, lines in curves.items():
        for point, value in zip(points, lines.mean(axis=0), strict=True):
            yield method, point, float(value)


def _write(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
