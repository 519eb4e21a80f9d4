"""What is attainable at each KL, and where each method's plan stands: as numbers, as lines and as a picture."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rarlhf.config.methods import colours_of, label_of
from rarlhf.evaluation.figures import STYLE, WIDTH
from rarlhf.risk.plan import FrontierRow, PlannedPolicy
from rarlhf.risk.planned import written

Plans = Mapping[str, PlannedPolicy]  # method -> its plan
AIMS = {"best_mean": ("highest mean", "#0072b2"), "best_cvar": ("highest CVaR", "#b3005e")}


def frontier_table(start: PlannedPolicy, rows: Sequence[FrontierRow], plans: Plans, alpha: float) -> dict[str, Any]:
    """The content of frontier.json: the reference, each KL's two optima, and the methods' plans.

    Args:
        start: the reference policy.
        rows: of `frontier`.
        plans: of the methods.
        alpha: level of every CVaR.
    """
    return {
        "alpha": alpha,
        "reference": {"mean": written(start)["mean"], "cvar": written(start)["cvar"]},
        "rows": [{"kl_target": row.kl_target, **{aim: written(getattr(row, aim)) for aim in AIMS}} for row in rows],
        "methods": {name: written(plan) for name, plan in plans.items()},
    }


def plan_table(start: PlannedPolicy, plans: Plans, alpha: float) -> str:
    """The plans in lines of text, after the SFT model's own numbers."""
    columns = ("eta", "beta", "KL", "mean", f"CVaR {alpha:.0%}", "samples", "lowest")
    lines = [f"{'plan':24}" + "".join(f"{name:>9}" for name in columns)]
    for name, plan in {"sft": start, **plans}.items():
        beta = None if plan is start else plan.kl_coef
        effective = (plan.effective_samples, plan.effective_samples_low)
        numbers = (plan.eta, beta, plan.kl, plan.mean, plan.cvar, *effective)
        lines.append(f"{name:24}" + "".join("        -" if x is None else f"{x:9.3f}" for x in numbers))
    return "\n".join(lines)


def frontier_figure(start: PlannedPolicy, rows: Sequence[FrontierRow], plans: Plans, alpha: float) -> Figure:
    """Mean and CVaR against KL of both optima, with the methods' plans; below, the effective answers to a prompt.

    Args:
        start: the reference policy, at no nats.
        rows: of `frontier`; those that the answers do not reach stand at the KL that they do.
        plans: of the methods.
        alpha: level of every CVaR.
    """
    panels = {
        "mean": "mean reward of the training prompts (score units)",
        "cvar": f"CVaR {alpha:.0%} (score units)",
        "effective_samples": "effective answers to a prompt",
    }
    with mpl.rc_context(dict(STYLE)):
        figure = Figure(figsize=(WIDTH, 7.2))
        axes = figure.subplots(len(panels), 1, sharex=True, height_ratios=(3, 3, 2))
        for axis, (number, title) in zip(axes, panels.items(), strict=True):
            axis.set_title(title)
            _lines(axis, start, rows, number)
            _marks(axis, plans, number)
        axes[0].legend(loc="lower right", frameon=False, fontsize=9)
        axes[-1].set_ylim(bottom=0)
        axes[-1].set_xlabel("KL to SFT (nats per response)")
        axes[-1].set_xlim(left=0)
    return figure


def _lines(axis: Axes, start: PlannedPolicy, rows: Sequence[FrontierRow], number: str) -> None:
    for aim, (label, colour) in AIMS.items():
        points = [start, *(getattr(row, aim) for row in rows)]
        places = [point.kl for point in points], [getattr(point, number) for point in points]
        axis.plot(*places, color=colour, label=f"policy of {label}", marker="o", markersize=3)


def _marks(axis: Axes, plans: Plans, number: str) -> None:
    """A ring for each plan, with the methods that have it in the legend."""
    colours = colours_of(plans)
    methods: dict[tuple[float, float], list[str]] = {}
    for name, plan in plans.items():
        methods.setdefault((round(plan.kl, 4), round(getattr(plan, number), 4)), []).append(name)
    for (kl, value), names in methods.items():
        ring: dict[str, Any] = {"s": 70, "facecolors": "none", "linewidths": 1.8, "zorder": 3}
        axis.scatter([kl], [value], edgecolors=colours[names[0]], label=", ".join(map(label_of, names)), **ring)
