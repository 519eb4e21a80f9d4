"""The report's figures: each method in its own colour, equal bytes for equal data.

A figure is a `Drawing` of one or more panels: together they are a picture in plots/, one by one they fit a narrow page.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from math import ceil
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
Finish = Callable[[], None]  # what is drawn last, when every panel has its place
Paint = Callable[[Axes], Finish | None]
WIDTH = 5.8  # inches; at 640 CSS pixels the 10-point text stays readable, on a phone too
SMALL = 4.2  # inches, of one of several panels: three beside each other on a page, one on a phone
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
DASHES = (0, (4, 2))
BINS = 48
MARKED_TAIL = 0.10  # level of the VaR and CVaR that histograms mark


def png(figure: Figure) -> bytes:
    """The figure as PNG without date or software name, so that equal data give equal bytes."""
    buffer = BytesIO()
    with mpl.rc_context(dict(STYLE)):
        figure.savefig(buffer, format="png", dpi=200, metadata={"Software": None})
    return buffer.getvalue()


@dataclass(frozen=True)
class Drawing:
    """A figure of panels, which is drawn as one picture or panel by panel.

    Attributes:
        panels: what paints each.
        size: width and height of a panel, inches.
        text: what it shows, for those who do not see it.
        columns: panels beside each other in the one picture.
    """

    panels: Sequence[Paint]
    size: tuple[float, float]
    text: str
    columns: int = 1

    def figure(self) -> Figure:
        """All panels in one picture."""
        return _drawn(self.panels, self.size, self.columns)

    def parts(self) -> list[Figure]:
        """A picture of each panel."""
        return [_drawn([panel], self.size, 1) for panel in self.panels]


def _drawn(panels: Sequence[Paint], size: tuple[float, float], columns: int) -> Figure:
    with mpl.rc_context(dict(STYLE)):
        rows = ceil(len(panels) / columns)
        figure = Figure(figsize=(columns * size[0], rows * size[1]))
        axes = list(figure.subplots(rows, columns, squeeze=False).reshape(-1))
        for axis in axes[len(panels) :]:
            axis.remove()
        last = [paint(axis) for paint, axis in zip(panels, axes, strict=False)]
        for finish in filter(None, last):
            finish()
        return figure


@contextmanager
def panel_grid(rows: int, columns: int, height: float) -> Iterator[tuple[Figure, list[Axes]]]:
    """Panels in rows, each with axes of its own, in this module's style."""
    with mpl.rc_context(dict(STYLE)):
        figure = Figure(figsize=(1.5 * WIDTH, height))
        yield figure, list(figure.subplots(rows, columns, squeeze=False).reshape(-1))


def reward_distribution(scores: Mapping[str, FloatArray], colours: Colours) -> Drawing:
    """Histogram of rewards, one panel per method with the base model behind it; VaR and CVaR marked.

    Both marks are means over seeds of each seed's own number, as `reward_var_10` and `reward_cvar_10` are.

    Args:
        scores: method -> (S, N) rewards of all prompts and samples by seed; `base` goes to the background.
        colours: of every method.
    """
    shown = [method for method in scores if method != "base" or len(scores) == 1]
    edges = np.histogram_bin_edges(np.concatenate([values.reshape(-1) for values in scores.values()]), bins=BINS)
    densities = [np.histogram(values, bins=edges, density=True)[0].max() for values in scores.values()]
    frame = edges, 1.08 * max(densities)
    panels = [partial(_distribution, scores, method, frame, colours) for method in shown]
    tails = {label_of(method): value_of_tail(scores[method], cvar) for method in shown}
    text = "CVaR 10 %: " + "; ".join(f"{label} {tail:.2f}" for label, tail in tails.items()) + "."
    return Drawing(panels, (SMALL, 2.5), text, columns=2)


def value_of_tail(by_seed: FloatArray, measure: Callable[[FloatArray, float], FloatArray]) -> float:
    """`cvar` or `value_at_risk` of (S, N) rewards at the marked level: each seed's, then the mean over seeds."""
    return float(measure(by_seed, MARKED_TAIL).mean())


def _distribution(
    scores: Mapping[str, FloatArray], method: str, frame: tuple[FloatArray, float], colours: Colours, axis: Axes
) -> None:
    """One panel; the frame is the common edges of the bins and the highest density that is shown."""
    edges, top = frame
    if "base" in scores:
        axis.hist(scores["base"].reshape(-1), bins=edges.tolist(), density=True, color="#d2d2d2")
    _histogram(axis, scores[method], edges, colours[method])
    axis.set_title(label_of(method), color=colours[method], fontweight="bold")
    axis.set(xlim=(edges[0], edges[-1]), ylim=(0, top), ylabel="density")
    axis.set_xlabel("reward (score units, higher is better)")


def _histogram(axis: Axes, by_seed: FloatArray, edges: FloatArray, colour: str) -> None:
    axis.hist(by_seed.reshape(-1), bins=edges.tolist(), density=True, histtype="step", color=colour, linewidth=1.8)
    quantile, tail_mean = value_of_tail(by_seed, value_at_risk), value_of_tail(by_seed, cvar)
    axis.axvspan(edges[0], quantile, color=colour, alpha=0.12, linewidth=0)
    axis.axvline(tail_mean, color=colour, linewidth=1.2, linestyle=DASHES)
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


def reward_quantiles(curves: MethodCurves, colours: Colours) -> Drawing:
    """The paper's curve: mean reward over the first x % of the test prompts by their own score; band: all seeds.

    Args:
        curves: method -> (S, 100) from `quantile_curves`.
        colours: of every method.
    """
    axes = ("first x % of the test prompts, lowest prompt score first", "mean reward (score units)")
    return _one_panel(np.array(PERCENTS, dtype=np.float64), curves, colours, axes)


def outcome_cvar(curves: MethodCurves, colours: Colours) -> Drawing:
    """CVaR of the rewards of all prompts and samples against its level; band: all seeds.

    Args:
        curves: method -> (S, 100) from `cvar_curves`.
        colours: of every method.
    """
    axes = ("level alpha: worst share of all continuations, %", "CVaR of the reward (score units)")
    return _one_panel(np.array(ALPHAS) * 100, curves, colours, axes)


def kl_by_decile(evaluation: Evaluation, colours: Colours) -> Drawing | None:
    """Mean KL of trained methods by decile of the prompts' own scores; None without such a method."""
    found = {m: np.array(by_seed) for m, by_seed in evaluation["kl_by_decile"].items() if is_trained(m)}
    if not found:
        return None
    axes = ("decile of the prompt's own score, lowest first", "KL to SFT (nats per response)")
    return _one_panel(np.arange(1.0, 1 + next(iter(found.values())).shape[1]), found, colours, axes)


def _one_panel(x: FloatArray, curves: MethodCurves, colours: Colours, axes: tuple[str, str]) -> Drawing:
    """A line for each method over the whole width; `axes` are the labels of x and y."""

    def paint(axis: Axes) -> None:
        _lines(axis, x, curves, colours)
        _label_ends(axis, curves, colours, gap=0.06)
        axis.set(xlabel=axes[0], ylabel=axes[1])

    return Drawing([paint], (5.0, 3.4), f"{axes[1]} from left to right: {_ends(curves)}.")


def _ends(curves: MethodCurves) -> str:
    """The first and the last point of each method's mean line."""
    means = {label_of(method): lines.mean(axis=0) for method, lines in curves.items()}
    return "; ".join(f"{label} {line[0]:.2f} to {line[-1]:.2f}" for label, line in means.items())


def training_curves(runs: TrainingCurves, colours: Colours, kl_target: float) -> Drawing | None:
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
    curves = {
        name: {method: np.stack([run[name] for run in by_seed.values()]) for method, by_seed in runs.items()}
        for name in panels
    }
    iterations = next(iter(next(iter(runs.values())).values()))["iteration"]

    def paint(name: str, axis: Axes) -> None:
        _lines(axis, iterations, curves[name], colours)
        axis.set_title(panels[name])
        if name == "kept":
            axis.set_ylim(bottom=0)
        if name == "kl":
            _target(axis, kl_target)
        _label_ends(axis, curves[name], colours, gap=0.1)
        axis.set_xlabel("iteration")

    text = "; ".join(f"{title}: {_ends(curves[name])}" for name, title in panels.items())
    return Drawing([partial(paint, name) for name in panels], (SMALL, 2.7), f"{text}.", columns=2)


def _target(axis: Axes, kl_target: float) -> None:
    axis.axhline(kl_target, color="#333333", linewidth=1, linestyle=DASHES)
    axis.annotate(
        f"target {kl_target:g}", (0, kl_target), xycoords=("axes fraction", "data"), xytext=(4, 3),
        textcoords="offset points", fontsize=9, color="#333333",
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
