"""Draws the picture of the README from measured numbers: `python docs/figure.py`.

Reads metrics/evaluate.json and writes docs/images/results.png: mean reward, both tails and KL of every method. Dots are
seeds; lines are the intervals over seeds, with the mean marked.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rarlhf.config.methods import colours_of, label_of
from rarlhf.evaluation.figures import STYLE, png

REPOSITORY = Path(__file__).resolve().parents[1]
PANELS = {  # metric: title, what the axis says
    "reward_mean": ("Mean reward", "score, higher is better"),
    "reward_prompt_tail": ("Prompt tail", "score, higher is better"),
    "reward_cvar_10": ("CVaR 10 %", "score, higher is better"),
    "kl_sft": ("KL to SFT", "nats, the price"),
}
Methods = Mapping[str, Mapping[str, Any]]


def draw(evaluation: Mapping[str, Any]) -> Figure:
    """One panel per metric, one line per method.

    Args:
        evaluation: what metrics/evaluate.json holds.
    """
    methods: Methods = evaluation["methods"]
    labels = [label_of(name) for name in methods]
    with mpl.rc_context(dict(STYLE)):
        figure = Figure(figsize=(6.6, 4.2))
        figure.get_layout_engine().set(w_pad=0.1, h_pad=0.1)
        panels: Sequence[Axes] = list(figure.subplots(2, 2, sharey=True).flat)
        for axis, (metric, (title, unit)) in zip(panels, PANELS.items(), strict=True):
            draw_metric(axis, methods, metric)
            axis.set_title(title, fontweight="bold")
            axis.set_xlabel(unit, fontsize=9)
        for axis in (panels[0], panels[2]):
            axis.set_yticks(range(len(labels)), labels, fontweight="bold")
            for label, colour in zip(axis.get_yticklabels(), colours_of(methods).values(), strict=True):
                label.set_color(colour)
        panels[0].invert_yaxis()
        panels[-1].axvline(evaluation["kl_target"], color="#333333", linewidth=1, linestyle=(0, (4, 2)))
        panels[-1].annotate("target", (evaluation["kl_target"], -0.35), xytext=(-3, 0), textcoords="offset points",
                            ha="right", va="center", fontsize=8)  # fmt: skip
    return figure


def draw_metric(axis: Axes, methods: Methods, metric: str) -> None:
    """Dots of the seeds, the mean, and the interval where there is one."""
    colours = colours_of(methods)
    for row, (name, metrics) in enumerate(methods.items()):
        values = metrics[metric]
        axis.scatter(values["per_seed"], [row + 0.27] * values["n"], s=16, color=colours[name], alpha=0.6, linewidths=0)
        low, high = values["ci95"] or (values["mean"], values["mean"])
        axis.plot([low, high], [row, row], color=colours[name], linewidth=2)
        axis.plot(values["mean"], row, "|", color=colours[name], markersize=12, markeredgewidth=2.5)
    axis.set_ylim(-0.6, len(methods) - 0.4)
    axis.grid(visible=False, axis="y")


def main() -> None:
    """Reads the numbers and writes the picture."""
    evaluation = json.loads((REPOSITORY / "metrics/evaluate.json").read_text(encoding="utf-8"))
    (REPOSITORY / "docs/images/results.png").write_bytes(png(draw(evaluation)))


if __name__ == "__main__":
    main()
