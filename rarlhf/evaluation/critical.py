"""The critical prompts in the report: where the tail's clusters lie, what was gained in each, and prompts of each."""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
from matplotlib.axes import Axes

from rarlhf.config.methods import label_of
from rarlhf.evaluation.clusters import Cluster, CriticalPrompts
from rarlhf.evaluation.comparisons import Evaluation
from rarlhf.evaluation.figures import WIDTH, Colours, Drawing
from rarlhf.evaluation.tables import number, with_half_width
from rarlhf.evaluation.words import percent

HEIGHT = 3.6  # inches
COLUMNS = 3  # of the legend
LINE = 0.065  # height of a line of the legend, as a share of the panel's
SPREAD = 0.7  # of a cluster's width, over which the methods' marks are spread


def name_of(index: int) -> str:
    """A cluster's name: A for the one with the lowest prompt score."""
    return chr(ord("A") + index)


def critical_prompts_figure(evaluation: Evaluation, colours: Colours) -> Drawing | None:
    """The clusters of the prompt tail in a plane, and each method's gain over SFT in each; None without clusters."""
    found = evaluation.get("critical_prompts")
    if found is None:
        return None
    gains = [
        f"{name_of(index)}: " + ", ".join(f"{label_of(m)} {gain['mean']:+.2f}" for m, gain in cluster["gains"].items())
        for index, cluster in enumerate(found["clusters"])
    ]
    panels = [partial(_plane, found), partial(_gains, found["clusters"], colours)]
    return Drawing(panels, (WIDTH, HEIGHT), f"Gain over SFT in mean reward by cluster. {'; '.join(gains)}.", columns=2)


def _plane(found: CriticalPrompts, axis: Axes) -> None:
    places = np.array(found["places"])
    for index in range(len(found["clusters"])):
        inside = places[places[:, 2] == index]
        letter = rf"$\mathrm{{{name_of(index)}}}$"
        axis.scatter(inside[:, 0], inside[:, 1], s=42, marker=letter, color="#8a8a8a", linewidths=0)
    axis.set_title("tail prompts by meaning; letter: cluster")
    axis.set_xlabel(f"first principal component (both: {percent(round(found['explained'], 2))} of the variance)")
    axis.set_ylabel("second")


def _gains(clusters: Sequence[Cluster], colours: Colours, axis: Axes) -> None:
    methods = list(clusters[0]["gains"])
    offsets = np.linspace(-SPREAD / 2, SPREAD / 2, len(methods)) if len(methods) > 1 else [0.0] * len(methods)
    for method, offset in zip(methods, offsets, strict=True):
        for index, cluster in enumerate(clusters):
            gain = cluster["gains"][method]
            dots = [index + offset] * gain["n"]
            axis.scatter(dots, gain["per_seed"], s=12, color=colours[method], alpha=0.6, linewidths=0)
            axis.plot(
                [index + offset], [gain["mean"]], color=colours[method], marker="_", markersize=10, markeredgewidth=2.4
            )
        axis.plot([], [], color=colours[method], marker="_", linestyle="", markeredgewidth=2.4, label=label_of(method))
    axis.axhline(0, color="#333333", linewidth=1)
    axis.set_xticks(range(len(clusters)), [f"{name_of(i)} ({c['prompts']})" for i, c in enumerate(clusters)])
    axis.set_title("gain over SFT in mean reward")
    axis.set_xlabel("cluster (prompts), lowest prompt score first")
    if methods:
        _legend(axis, len(methods))


def _legend(axis: Axes, methods: int) -> None:
    """Names the methods above all marks: the axis goes as much further up as the legend is high."""
    columns = min(methods, COLUMNS)
    lines = -(-methods // columns)
    low, high = axis.get_ylim()
    share = min(0.7, LINE * lines + 0.02)
    axis.set_ylim(low, low + (high - low) / (1 - share))
    axis.legend(frameon=False, fontsize=8, loc="upper center", ncols=columns, columnspacing=1.0, handletextpad=0.3)


def gains_of(evaluation: Evaluation) -> list[str]:
    """The methods whose gains the clusters have; none without clusters."""
    found = evaluation.get("critical_prompts")
    return list(found["clusters"][0]["gains"]) if found else []


def cluster_rows(evaluation: Evaluation, prompts: Mapping[int, str]) -> list[tuple[list[str], list[str]]]:
    """For each cluster the cells of its row, and the texts of the prompts nearest to its centre.

    Args:
        evaluation: content of metrics/evaluate.json.
        prompts: id -> text of the test prompts.

    Returns: cells: name, prompts, mean prompt score, then each trained method's gain; none without clusters.
    """
    found = evaluation.get("critical_prompts")
    if found is None:
        return []
    return [
        (
            [
                name_of(index),
                str(cluster["prompts"]),
                number(cluster["prompt_score"]),
                *(with_half_width(gain, evaluation["confidence"]) for gain in cluster["gains"].values()),
            ],
            [prompts[i] for i in cluster["nearest"] if i in prompts],
        )
        for index, cluster in enumerate(found["clusters"])
    ]
