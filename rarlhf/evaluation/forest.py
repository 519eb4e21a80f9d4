"""Rows of estimates with their intervals: paired differences to RLHF, and shares of the attainable."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from matplotlib.axes import Axes

from rarlhf.config.methods import RLHF, is_trained, label_of
from rarlhf.evaluation.attainable import SHARES
from rarlhf.evaluation.comparisons import Comparison, Evaluation
from rarlhf.evaluation.exports import pairs_with_rlhf
from rarlhf.evaluation.figures import DASHES, SMALL, Colours, Drawing
from rarlhf.evaluation.findings import MARK, comparable
from rarlhf.evaluation.statistics import t_half_width
from rarlhf.evaluation.tables import difference_text

PANELS: Mapping[str, str] = {
    "reward_cvar_10": "CVaR 10 %",
    "reward_prompt_tail": "prompt tail",
    "reward_mean": "mean reward",
}
GREY = "#8a8a8a"  # of pairs whose rewards are not comparable
ROW, MARGIN = 0.34, 1.0  # inches


@dataclass(frozen=True)
class Row:
    """One estimate.

    Attributes:
        label: what stands before it.
        colour: of its marks and its label.
        mean: over seeds.
        interval: its ends; None where there is none.
        per_seed: one number for each seed.
    """

    label: str
    colour: str
    mean: float
    interval: Sequence[float] | None
    per_seed: Sequence[float]


def differences(evaluation: Evaluation, colours: Colours) -> Drawing | None:
    """Each trained method less RLHF on CVaR 10 %, prompt tail and mean; None where no pair was compared.

    Pairs that are not at like KL are grey, with `MARK` after the name.
    """
    pairs = pairs_with_rlhf(evaluation)
    if not pairs:
        return None
    panels = [
        partial(_panel, [_difference(pair, metric, colours) for pair in pairs], title, 0.0)
        for metric, title in PANELS.items()
    ]
    text = "; ".join(
        f"{_name(pair)}: "
        + ", ".join(f"{title} {difference_text(pair['metrics'][metric])}" for metric, title in PANELS.items())
        for pair in pairs
    )
    return Drawing(panels, (SMALL, MARGIN + ROW * len(pairs)), f"{text}.", columns=len(panels))


def _name(pair: Comparison) -> str:
    return label_of(pair["first"]) + ("" if comparable(pair) else f" {MARK}")


def _difference(pair: Comparison, metric: str, colours: Colours) -> Row:
    difference = pair["metrics"][metric]
    colour = colours[pair["first"]] if comparable(pair) else GREY
    return Row(_name(pair), colour, difference["mean"], difference["interval"], difference["per_seed"])


def shares(evaluation: Evaluation, colours: Colours) -> Drawing | None:
    """The share of the attainable that each trained method reached, in percent; None where no method has one."""
    titles = {SHARES[metric]: title for metric, title in PANELS.items()}
    having = {
        share: [m for m in evaluation["methods"] if is_trained(m) and share in evaluation["methods"][m]]
        for share in titles
    }
    shown = {share: methods for share, methods in having.items() if methods}
    if not shown:
        return None
    rows = {share: [_share(evaluation, m, share, colours) for m in methods] for share, methods in shown.items()}
    panels = [partial(_panel, rows[share], f"share of the attainable {titles[share]}, %", 100.0) for share in shown]
    text = "; ".join(
        f"{titles[share]}: " + ", ".join(f"{r.label} {r.mean:.0f} %" for r in rows[share]) for share in rows
    )
    height = MARGIN + ROW * max(map(len, rows.values()))
    return Drawing(panels, (SMALL, height), f"{text}.", columns=len(panels))


def _share(evaluation: Evaluation, method: str, share: str, colours: Colours) -> Row:
    per_seed = [100 * value for value in evaluation["methods"][method][share]["per_seed"]]
    mean, half = sum(per_seed) / len(per_seed), t_half_width(per_seed, evaluation["confidence"])
    interval = None if half is None else (mean - half, mean + half)
    return Row(label_of(method), colours[method], mean, interval, per_seed)


def _panel(rows: Sequence[Row], title: str, reference: float, axis: Axes) -> None:
    """A row for each estimate, the first on top; a dashed line at the reference."""
    axis.axvline(reference, color="#333333", linewidth=1, linestyle=DASHES)
    for place, row in enumerate(rows):
        if row.interval is not None:
            axis.plot(list(row.interval), [place, place], color=row.colour, linewidth=2, solid_capstyle="butt")
        axis.plot([row.mean], [place], color=row.colour, marker="|", markersize=11, markeredgewidth=2.4)
        dots = [place + 0.27] * len(row.per_seed)
        axis.scatter(list(row.per_seed), dots, s=12, color=row.colour, alpha=0.7, linewidths=0)
    axis.set_ylim(len(rows) - 0.4, -0.5)
    axis.set_yticks(range(len(rows)), [row.label for row in rows], fontweight="bold", fontsize=9)
    for label, row in zip(axis.get_yticklabels(), rows, strict=True):
        label.set_color(row.colour)
    axis.tick_params(axis="y", length=0)
    axis.grid(visible=False, axis="y")
    axis.spines["left"].set_visible(False)
    axis.set_title(title)
    if not reference:
        axis.set_xlabel(f"less {label_of(RLHF)} (score units), higher is better")
