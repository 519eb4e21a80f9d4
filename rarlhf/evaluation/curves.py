"""Lines for figures and `dvc plots`: reward by prompt quantile, outcome CVaR by level, training by iteration."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from rarlhf.config.errors import UserError
from rarlhf.evaluation.generations import FloatArray, Tables
from rarlhf.evaluation.metrics import cvar_curve, quantile_curve

PERCENTS = tuple(range(1, 101))
ALPHAS = tuple(percent / 100 for percent in PERCENTS)
TRAINING_COLUMNS: Mapping[str, str] = {  # column of the training csv -> name in plots/training.csv
    "objective/score_mean": "score_mean",
    "risk/score_cvar": "score_cvar",
    "objective/kl": "kl",
    "objective/kl_coef": "kl_coef",
    "risk/kept": "kept",
}

MethodCurves = Mapping[str, FloatArray]  # method -> (S, points)
TrainingRun = Mapping[str, FloatArray]  # name -> (M,), `iteration` among them
TrainingCurves = Mapping[str, Mapping[int, TrainingRun]]  # method -> seed -> run


def quantile_curves(tables: Tables) -> MethodCurves:
    """Mean reward over the first x % of prompts by prompt score, x = 1..100: method -> (S, 100)."""
    return {
        method: np.stack([quantile_curve(t.prompt_scores, t.scores, PERCENTS) for t in by_seed.values()])
        for method, by_seed in tables.items()
    }


def cvar_curves(tables: Tables) -> MethodCurves:
    """CVaR of the mixture of prompts and samples at alpha = 0.01..1: method -> (S, 100)."""
    return {
        method: np.stack([cvar_curve(t.scores, ALPHAS) for t in by_seed.values()]) for method, by_seed in tables.items()
    }


def read_training(folder: Path, methods: Sequence[str], seeds: Sequence[int]) -> TrainingCurves:
    """Read curves/METHOD/SEED.csv of `methods`, those that PPO trained: fits have no iterations.

    Raises: UserError if a seed's file is missing, empty, lacks a column, or has other iterations than the others.
    """
    runs = {method: {seed: read_run(folder / method / f"{seed}.csv") for seed in seeds} for method in methods}
    flat = [(f"{method}/{seed}.csv", run) for method, by_seed in runs.items() for seed, run in by_seed.items()]
    for name, run in flat[1:]:
        if not np.array_equal(run["iteration"], flat[0][1]["iteration"]):
            raise UserError(f"training curve {name} has other iterations than {flat[0][0]}: run their stages again")
    return runs


def read_run(path: Path) -> TrainingRun:
    """Read the columns of one PPO run's csv that figures use.

    Raises: UserError if the file is missing, empty, or lacks a column.
    """
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


def write_plot_data(folder: Path, quantiles: MethodCurves, tails: MethodCurves, training: TrainingCurves) -> None:
    """Write csv files for `dvc plots`.

    reward_quantile.csv by percent of prompts and cvar_curve.csv by level: a line for each method and point, with the
    mean over seeds, the lowest and the highest seed.
    training.csv: a line for every iteration of every run; it is not written where PPO trained no method.
    """
    _write_means(folder / "reward_quantile.csv", "quantile", PERCENTS, quantiles)
    _write_means(folder / "cvar_curve.csv", "alpha", ALPHAS, tails)
    names = list(TRAINING_COLUMNS.values())
    lines = [
        [method, seed, int(iteration), *numbers]
        for method, runs in training.items()
        for seed, run in runs.items()
        for iteration, *numbers in zip(run["iteration"], *(run[name].tolist() for name in names), strict=True)
    ]
    if lines:
        _write(folder / "training.csv", [["method", "seed", "iteration", *names], *lines])


def _write_means(path: Path, axis: str, points: Sequence[float], curves: MethodCurves) -> None:
    lines = [
        [method, point, *numbers]
        for method, curve in curves.items()
        for point, *numbers in zip(points, *(line.tolist() for line in _band(curve)), strict=True)
    ]
    _write(path, [["method", axis, "reward", "lowest", "highest"], *lines])


def _band(curve: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Mean over seeds, lowest and highest seed of (S, points) values, (points,) each."""
    return curve.mean(axis=0), curve.min(axis=0), curve.max(axis=0)


def _write(path: Path, lines: Iterable[Iterable[object]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(lines)
