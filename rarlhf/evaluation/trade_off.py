"""Reward against KL: what each method reached and spent, and the best that any policy of that KL could have."""

from collections.abc import Mapping, Sequence
from functools import partial
from math import cos, hypot, pi, sin

import numpy as np
from matplotlib.axes import Axes
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

from rarlhf.config.methods import label_of
from rarlhf.evaluation.comparisons import Evaluation
from rarlhf.evaluation.figures import DASHES, Colours, Drawing, Finish
from rarlhf.evaluation.generations import FloatArray
from rarlhf.evaluation.pool import BestOfNCurve

PANELS: Mapping[str, str] = {
    "reward_cvar_10": "CVaR 10 %: the worst answers",
    "reward_mean": "mean reward",
}
SIZE = (4.8, 3.6)  # inches, of a panel
REACH = 1.25  # the axis ends at this times the highest KL of a method on it, or the target
FAR = 4.0  # times the target, or the median KL of the methods if that is higher: beyond, a method is named at the edge
DISC, DOT = 6.0, 2.5  # radii, points
LINE = 11.0  # height of a name, points
RINGS = (9.0, 16.0, 25.0, 36.0, 48.0, 62.0, 78.0)  # distances from a disc at which its name may stand, points
TURNS = tuple(k * pi / 12 for k in range(24))


def trade_off(evaluation: Evaluation, colours: Colours) -> Drawing:
    """CVaR 10 % and mean against KL: dots are seeds, discs their mean, dashed the attainable, crosses best of n.

    Args:
        evaluation: content of metrics/evaluate.json; without `attainable` there is no dashed curve.
        colours: of every method.
    """
    methods = evaluation["methods"]
    text = "; ".join(
        f"{label_of(method)}: KL {spreads['kl_sft']['mean']:.2f}, "
        + ", ".join(f"{title.split(':')[0]} {spreads[metric]['mean']:.2f}" for metric, title in PANELS.items())
        for method, spreads in methods.items()
    )
    panels = [partial(_panel, evaluation, colours, metric, title) for metric, title in PANELS.items()]
    return Drawing(panels, SIZE, f"{text}.", columns=len(PANELS))


def _panel(evaluation: Evaluation, colours: Colours, metric: str, title: str, axis: Axes) -> Finish:
    target, every = evaluation["kl_target"], evaluation["methods"]
    near = on_axis({method: spreads["kl_sft"]["mean"] for method, spreads in every.items()}, target)
    methods, far = ({m: every[m] for m in every if (m in near) == inside} for inside in (True, False))
    reach = REACH * max([target, *(kl for spreads in methods.values() for kl in spreads["kl_sft"]["per_seed"])])
    _attainable(axis, evaluation, metric, reach)
    for method, spreads in methods.items():
        kl, reward, colour = spreads["kl_sft"], spreads[metric], colours[method]
        axis.scatter([kl["mean"]], [reward["mean"]], s=(2 * DISC) ** 2, color=colour, alpha=0.3, linewidths=0)
        axis.scatter(kl["per_seed"], reward["per_seed"], s=(2 * DOT) ** 2 / 1.6, color=colour, linewidths=0, zorder=3)
    for method, spreads in far.items():
        axis.plot([reach], [spreads[metric]["mean"]], marker=">", markersize=5, color=colours[method], clip_on=False)
    axis.axvline(target, color="#333333", linewidth=1, linestyle=(0, (1, 2)))
    axis.annotate(
        f"target {target:g}", (target, 0), xycoords=("data", "axes fraction"), xytext=(3, 4),
        textcoords="offset points", fontsize=8, color="#333333",
    )  # fmt: skip
    axis.set_title(title)
    axis.set_xlim(-0.06 * reach, reach)
    axis.margins(y=0.12)
    axis.set(xlabel="KL to SFT (nats per response)", ylabel="score units")
    means = {m: (spreads["kl_sft"]["mean"], spreads[metric]["mean"]) for m, spreads in methods.items()}
    dots = [
        place
        for spreads in methods.values()
        for place in zip(spreads["kl_sft"]["per_seed"], spreads[metric]["per_seed"], strict=True)
    ]
    outside = {f"{label_of(m)}, {s['kl_sft']['mean']:.1f}": (s[metric]["mean"], colours[m]) for m, s in far.items()}
    return partial(_name, axis, means, dots, outside, colours)


def on_axis(means: Mapping[str, float], target: float) -> set[str]:
    """The methods that the axis of KL shows; the others are so far out that it would squeeze these.

    Args:
        means: KL of each method, nats.
        target: the KL target, nats.
    """
    limit = FAR * max(target, float(np.median(list(means.values()))))
    return {method for method, kl in means.items() if kl <= limit}


def _attainable(axis: Axes, evaluation: Evaluation, metric: str, reach: float) -> None:
    """The dashed curve, linear in sqrt(KL) between its points, as far as the axis goes."""
    curves = evaluation.get("attainable")
    if curves is None or metric not in curves["metrics"]:
        return
    kl = np.linspace(0, np.sqrt(min(reach, curves["kl"][-1])), 60)
    value = np.interp(kl, np.sqrt(curves["kl"]), curves["metrics"][metric])
    axis.plot(kl**2, value, color="#555555", linestyle=DASHES, linewidth=1.4)
    _best_of_n(axis, curves["best_of_n"], metric, reach)
    axis.annotate(
        "attainable", (kl[26] ** 2, value[26]), xytext=(7, -3), textcoords="offset points", va="top", fontsize=8,
        color="#555555",
    )  # fmt: skip


def _best_of_n(axis: Axes, curve: BestOfNCurve, metric: str, reach: float) -> None:
    """A small cross for each n, at the KL that was estimated."""
    shown = [(n, kl, value) for n, kl, value in zip(curve["n"], curve["kl"], curve["metrics"][metric], strict=True)]
    for n, kl, value in [one for one in shown if one[0] > 1 and one[1] < reach]:
        axis.plot([kl], [value], marker="x", markersize=4, color="#8a8a8a", linestyle="none")
        axis.annotate(
            f"best of {n}", (kl, value), xytext=(4, -2), textcoords="offset points", va="top", fontsize=7,
            color="#8a8a8a",
        )  # fmt: skip


def _name(
    axis: Axes,
    means: Mapping[str, tuple[float, float]],
    dots: Sequence[tuple[float, float]],
    outside: Mapping[str, tuple[float, str]],
    colours: Colours,
) -> None:
    """Each method's name beside its disc, with a line to it where the name had to go further off.

    Args:
        axis: the panel.
        means: KL and reward of each method on the axis.
        dots: those of its seeds.
        outside: reward and colour of each method beyond the axis, by what stands at the edge for it.
        colours: of every method.
    """
    figure = axis.get_figure(root=True)
    if figure is None:
        return
    figure.draw_without_rendering()  # the panel has its place only now
    scale = 72 / figure.dpi
    at = {method: np.asarray(axis.transData.transform(place)) * scale for method, place in means.items()}
    frame = Bbox(axis.get_window_extent().get_points() * scale)
    taken = [_box(place, 2 * DISC, 2 * DISC) for place in at.values()]
    taken += [_box(np.asarray(axis.transData.transform(place)) * scale, 2 * DOT, 2 * DOT) for place in dots]
    taken += [
        _box(np.asarray(axis.transData.transform(place)) * scale, DOT, DOT)
        for line in axis.lines
        if len(np.asarray(line.get_xydata())) > 2  # the curve of the attainable; a name may cross the target
        for place in np.asarray(line.get_xydata())
    ]
    taken += [Bbox(text.get_window_extent().get_points() * scale) for text in axis.texts]
    for words, (reward, colour) in outside.items():
        _name_at_edge(axis, words, reward, colour, frame, taken)
    for method in sorted(at, key=lambda name: -float(at[name][1])):
        name = axis.annotate(
            label_of(method), means[method], xytext=(0, 0), textcoords="offset points", ha="center", va="center",
            color=colours[method], fontweight="bold", fontsize=9, zorder=4,
            arrowprops={"arrowstyle": "-", "color": colours[method], "linewidth": 0.8, "shrinkA": 1, "shrinkB": 3},
        )  # fmt: skip
        _put(name, at[method], _outward(at[method], list(at.values())), frame, taken, scale)


def _name_at_edge(axis: Axes, words: str, reward: float, colour: str, frame: Bbox, taken: list[Bbox]) -> None:
    """Writes a name and its KL left of the right edge, at its reward or as near to it as there is room."""
    points = 72 / axis.figure.dpi
    height = float(axis.transData.transform((0, reward))[1]) * points
    name = axis.annotate(
        words, (1, reward), xycoords=("axes fraction", "data"), xytext=(0, 0), textcoords="offset points", ha="right",
        va="center", color=colour, fontweight="bold", fontsize=9, zorder=4,
    )  # fmt: skip
    width = Annotation.get_window_extent(name).width * points
    shifts = sorted(np.arange(-20, 21) * LINE / 2, key=abs)
    boxes = [_box(np.array([frame.x1 - DISC - width / 2, height + shift]), width, LINE) for shift in shifts]
    inside = [frame.y0 <= box.y0 and box.y1 <= frame.y1 for box in boxes]
    free = [i for i, box in enumerate(boxes) if inside[i] and not box.count_overlaps(taken)]
    chosen = free[0] if free else 0
    name.set_position((-DISC, float(shifts[chosen])))
    name.set_in_layout(False)
    taken.append(boxes[chosen])


def _put(name: Annotation, disc: FloatArray, outward: float, frame: Bbox, taken: list[Bbox], scale: float) -> None:
    """Moves a name to the nearest free place around its disc, and takes that place; all lengths in points."""
    extent = Annotation.get_window_extent(name)
    width, height = extent.width * scale, LINE
    offset = free_place((width, height), disc, outward, frame, taken)
    name.set_position(offset)
    name.set_in_layout(False)
    if hypot(offset[0] / (width / 2 + RINGS[0]), offset[1] / (height / 2 + RINGS[0])) <= 1.01 and name.arrow_patch:
        name.arrow_patch.set_visible(False)
    taken.append(_box(disc + np.array(offset), width, height))


def free_place(
    size: tuple[float, float], disc: FloatArray, outward: float, frame: Bbox, taken: Sequence[Bbox]
) -> tuple[float, float]:
    """Where the centre of a name goes, as an offset from its disc.

    Places are tried on growing ellipses around the disc, on each from the outward direction on to both sides.

    Args:
        size: width and height of the name.
        disc: (2,) centre of the disc.
        outward: angle that leads away from the other discs, radians.
        frame: what the name must lie within.
        taken: what it must not touch.

    Returns: the first free place; the outward one on the first ellipse where there is none.
    """
    turns = sorted(TURNS, key=lambda turn: abs((turn - outward + pi) % (2 * pi) - pi))
    places = [((size[0] / 2 + ring) * cos(turn), (size[1] / 2 + ring) * sin(turn)) for ring in RINGS for turn in turns]
    for place in places:
        box = _box(disc + np.array(place), *size)
        within = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
        if within and not box.count_overlaps(list(taken)):
            return place
    return places[0]


def _outward(disc: FloatArray, discs: Sequence[FloatArray]) -> float:
    """The angle from the middle of the discs around to this one; to the right where it is alone."""
    near = [other for other in discs if hypot(*(other - disc)) < RINGS[-1]]
    away = disc - np.mean(near, axis=0)
    return float(np.arctan2(away[1], away[0])) if hypot(*away) > 1e-9 else 0.0


def _box(centre: FloatArray, width: float, height: float) -> Bbox:
    return Bbox.from_bounds(centre[0] - width / 2, centre[1] - height / 2, width, height)
