"""The report's figures: each method in its own colour, equal bytes for equal data."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rarlhf.config.methods import is_trained, label_of
from rarlhf.evaluation.comparisons import Evaluation
from rarlhf.evaluation.curves import ALPHAS, PERCENTS, MethodCurves, TrainingCurves
from rarlhf.evaluation.generations import FloatArray
from rarlhf.evaluation.metrics import cvar, value_at_risk

Colours = Mapping[str, str]  # method -> colour
WIDTH = 5.8  # inches; at 640 CSS pixels the 10-point text stays readable, on a phone too
STYLE: Mapping[Any, object] = {
    "font.family": "DejaVu Sans",  # ships with matplotlib: the same bytes on every machine
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.labelcolor": "#222222",
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.8,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "lines.linewidth": 1.8,
    "figure.facecolor": "white",
    "figure.constrained_layout.use": True,
}
BINS = 48
MARKED_TAIL = 0.10  # level of the VaR and CVaR that histograms mark


def png(figure: Figure) -> bytes:
    """The figure as PNG without date or software name, so that equal data give equal bytes."""
    buffer = BytesIO()
    with mpl.rc_context(dict(STYLE)):
        figure.savefig(buffer, format="png", dpi=200, metadata={"Software": None})
    return buffer.getvalue()


@contextmanager
def _panels(rows: int, height: float, share_y: bool = False) -> Iterator[tuple[Figure, Sequence[Axes]]]:
    """`rows` panels under each other over a common x axis, in this module's style."""
    with mpl.rc_context(dict(STYLE)):
        figure = Figure(figsize=(WIDTH, height))
        axes = figure.subplots(rows, 1, sharex=True, sharey=share_y, squeeze=False)[:, 0]
        yield figure, list(axes)


@contextmanager
def panel_grid(rows: int, columns: int, height: float) -> Iterator[tuple[Figure, list[Axes]]]:
    """Panels in rows, each with axes of its own, in this module's style."""
    with mpl.rc_context(dict(STYLE)):
        figure = Figure(figsize=(1.5 * WIDTH, height))
        yield figure, list(figure.subplots(rows, columns, squeeze=False).reshape(-1))


def reward_distribution(scores: Mapping[str, FloatArray], colours: Colours) -> Figure:
    """Histogram of rewards, one panel per method with the base model behind it; VaR and CVaR of the mixture marked.

    Args:
        scores: method -> (N,) rewards of all seeds, prompts and samples; `base` goes to the background.
        colours: of every method.
    """
    background = scores.get("base")
    shown = [method for method in scores if method != "base" or len(scores) == 1]
    edges = np.histogram_bin_edges(np.concatenate(list(scores.values())), bins=BINS)
    with _panels(len(shown), 0.6 + 1.5 * len(shown), share_y=True) as (figure, axes):
        for axis, method in zip(axes, shown, strict=True):
            if background is not None:
                axis.hist(background, bins=edges.tolist(), density=True, color="#d2d2d2")
            _histogram(axis, scores[method], edges, colours[method])
            axis.set_title(label_of(method), color=colours[method], fontweight="bold")
            axis.set_xlim(edges[0], edges[-1])
        axes[-1].set_xlabel("reward of prompt + continuation (score units, higher is better)")
        figure.supylabel("density", fontsize=10)
    return figure


def _histogram(axis: Axes, values: FloatArray, edges: FloatArray, colour: str) -> None:
    axis.hist(values, bins=edges.tolist(), density=True, histtype="step", color=colour, linewidth=1.8)
    quantile, tail_mean = float(value_at_risk(values, MARKED_TAIL)), float(cvar(values, MARKED_TAIL))
    axis.axvspan(edges[0], quantile, color=colour, alpha=0.12, linewidth=0)
    axis.axvline(tail_mean, color=colour, linewidth=1.2, linestyle=(0, (4, 2)))
    left_of_it = tail_mean > edges[0] + 0.3 * (edges[-1] - edges[0])  # else the text would be over the axis
    axis.annotate(
        f"CVaR {MARKED_TAIL:.0%} = {tail_mean:.2f}",
        (tail_mean, 1.0),
        xycoords=("data", "axes fraction"),
        xytext=(-4 if left_of_it else 4, -3),
        textcoords="offset points",
        ha="right" if left_of_it else "left",
        va="top",
        fontsize=9,
        color=colour,
    )


def reward_quantiles(curves: MethodCurves, colours: Colours) -> Figure:
    """The paper's curve: mean reward over the first x % of the test prompts by their own score; band: all seeds.

    Args:
        curves: method -> (S, 100) from `quantile_curves`.
        colours: of every method.
    """
    with _panels(1, 3.6) as (figure, axes):
        _lines(axes[0], np.array(PERCENTS, dtype=np.float64), curves, colours)
        _label_ends(axes[0], curves, colours, gap=0.075)
        axes[0].set_xlabel("first x % of the test prompts, lowest prompt score first")
        axes[0].set_ylabel("mean reward (score units)")
    return figure


def outcome_cvar(curves: MethodCurves, colours: Colours) -> Figure:
    """CVaR of the rewards of all prompts and samples against its level; band: all seeds.

    Args:
        curves: method -> (S, 100) from `cvar_curves`.
        colours: of every method.
    """
    with _panels(1, 3.6) as (figure, axes):
        _lines(axes[0], np.array(ALPHAS) * 100, curves, colours)
        _label_ends(axes[0], curves, colours, gap=0.075)
        axes[0].set_xlabel("level alpha: worst share of all continuations, %")
        axes[0].set_ylabel("CVaR of the reward (score units)")
    return figure


def training_curves(runs: TrainingCurves, colours: Colours, kl_target: float) -> Figure | None:
    """Reward mean and CVaR, KL with its target, coefficient and kept episodes per iteration; None without a PPO run.

    Args:
        runs: method -> seed -> columns from `read_training`; line: mean over seeds, band: all seeds.
        colours: of every method.
        kl_target: nats.
    """
    if not runs:
        return None
    panels = {
        "score_mean": "mean reward (score units)",
        "score_cvar": "CVaR 10 % of the batch's rewards (score units)",
        "kl": "KL to SFT (nats per response)",
        "kl_coef": "KL coefficient (score units per nat)",
        "kept": "episodes kept",
    }
    with _panels(len(panels), 8.6) as (figure, axes):
        for axis, (name, title) in zip(axes, panels.items(), strict=True):
            curves = {method: np.stack([run[name] for run in by_seed.values()]) for method, by_seed in runs.items()}
            _lines(axis, next(iter(next(iter(runs.values())).values()))["iteration"], curves, colours)
            axis.set_title(title)
            if name == "kept":
                axis.set_ylim(bottom=0)
            _label_ends(axis, curves, colours, gap=0.16)
        axes[2].axhline(kl_target, color="#333333", linewidth=1, linestyle=(0, (4, 2)))
        axes[2].annotate(
            f"target {kl_target:g}", (0, kl_target), xycoords=("axes fraction", "data"), xytext=(4, 3),
            textcoords="offset points", fontsize=9, color="#333333",
        )  # fmt: skip
        axes[-1].set_xlabel("iteration")
    return figure


def trade_off(evaluation: Evaluation, colours: Colours) -> Figure:
    """Mean reward and outcome CVaR against KL: dots are seeds, discs their mean, the dashed line the KL target."""
    panels = {"reward_mean": "mean reward (score units)", "reward_cvar_10": "outcome CVaR 10 % (score units)"}
    with _panels(2, 5.2) as (figure, axes):
        for axis, (metric, title) in zip(axes, panels.items(), strict=True):
            _scatter(axis, evaluation, colours, metric)
            axis.set_title(title)
        axes[-1].set_xlabel("KL to SFT (nats per response)")
    return figure


def attainable(evaluation: Evaluation, colours: Colours) -> Figure | None:
    """The attainable mean and CVaR against KL, and the seeds of trained methods; None where it was not computed."""
    if "attainable" not in evaluation:
        return None
    curves = evaluation["attainable"]
    panels = {"reward_mean": "mean reward (score units)", "reward_cvar_10": "outcome CVaR 10 % (score units)"}
    with _panels(2, 5.6) as (figure, axes):
        for axis, (metric, title) in zip(axes, panels.items(), strict=True):
            axis.plot(curves["kl"], curves["metrics"][metric], color="#555555", linestyle="--", label="attainable")
            for method in filter(is_trained, evaluation["methods"]):
                spreads = evaluation["methods"][method]
                axis.scatter(
                    spreads["kl_sft"]["per_seed"], spreads[metric]["per_seed"],
                    s=22, color=colours[method], linewidths=0, zorder=3, label=label_of(method),
                )  # fmt: skip
            axis.set_title(title)
            axis.set_xlim(left=0)
        axes[-1].set_xlabel("KL to SFT (nats per response)")
        figure.legend(
            *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=9
        )
    return figure


def kl_by_decile(evaluation: Evaluation, colours: Colours) -> Figure | None:
    """Mean KL of trained methods by decile of the prompts' own scores; None without such a method."""
    found = {m: np.array(by_seed) for m, by_seed in evaluation["kl_by_decile"].items() if is_trained(m)}
    if not found:
        return None
    with _panels(1, 3.2) as (figure, axes):
        _lines(axes[0], np.arange(1.0, 1 + next(iter(found.values())).shape[1]), found, colours)
        _label_ends(axes[0], found, colours, gap=0.085)
        axes[0].set_xlabel("decile of the prompt's own score, lowest first")
        axes[0].set_ylabel("KL to SFT (nats per response)")
    return figure


def _scatter(axis: Axes, evaluation: Evaluation, colours: Colours, metric: str) -> None:
    methods, target = evaluation["methods"], evaluation["kl_target"]
    for method, spreads in methods.items():
        kl, reward, colour = spreads["kl_sft"], spreads[metric], colours[method]
        axis.scatter([kl["mean"]], [reward["mean"]], s=150, color=colour, alpha=0.3, linewidths=0)
        axis.scatter(kl["per_seed"], reward["per_seed"], s=14, color=colour, linewidths=0, zorder=3)
    axis.axvline(target, color="#333333", linewidth=1, linestyle=(0, (4, 2)))
    axis.margins(x=0.2, y=0.2)
    low, high = axis.get_ylim()
    heights = [(spreads[metric]["mean"] - low) / (high - low) for spreads in methods.values()]
    for (method, spreads), height in zip(methods.items(), _apart(heights, gap=0.1), strict=True):
        axis.annotate(
            label_of(method), (spreads["kl_sft"]["mean"], height), xycoords=("data", "axes fraction"), xytext=(10, 0),
            textcoords="offset points", va="center", color=colours[method], fontweight="bold", fontsize=9,
        )  # fmt: skip


def _lines(axis: Axes, x: FloatArray, curves: MethodCurves, colours: Colours) -> None:
    """Mean over seeds as a line, the range of the seeds as a band."""
    for method, lines in curves.items():
        axis.plot(x, lines.mean(axis=0), color=colours[method])
        if len(lines) > 1:
            axis.fill_between(x, lines.min(axis=0), lines.max(axis=0), color=colours[method], alpha=0.18, linewidth=0)
    axis.set_xlim(x[0], x[-1] if len(x) > 1 else x[0] + 1)


def _label_ends(axis: Axes, curves: MethodCurves, colours: Colours, gap: float) -> None:
    """The method's name at its line's end, moved where two names would touch; call it once the axis has its limits."""
    low, high = axis.get_ylim()
    ends = [(float(lines[:, -1].mean()) - low) / (high - low) for lines in curves.values()]
    for method, end in zip(curves, _apart(ends, gap), strict=True):
        axis.annotate(
            label_of(method), (1, end), xycoords="axes fraction", xytext=(4, 0), textcoords="offset points",
            va="center", color=colours[method], fontsize=9, fontweight="bold", annotation_clip=False,
        )  # fmt: skip


def _apart(positions: Sequence[float], gap: float) -> list[float]:
    """Move positions as little as possible so that neighbours are at least `gap` apart, in the same order."""
    order = np.argsort(positions, kind="stable")
    groups: list[list[float]] = []  # wanted positions of labels that touch
    for wanted in np.array(positions)[order]:
        groups.append([float(wanted)])
        while len(groups) > 1 and _span(groups[-2], gap)[1] + gap > _span(groups[-1], gap)[0]:
            groups[-2:] = [groups[-2] + groups[-1]]
    placed = [_span(group, gap)[0] + gap * i for group in groups for i in range(len(group))]
    result = np.empty(len(placed))
    result[order] = placed
    return [float(position) for position in result]


def _span(group: Sequence[float], gap: float) -> tuple[float, float]:
    half = gap * (len(group) - 1) / 2
    centre = sum(group) / len(group)
    return centre - half, centre + half
