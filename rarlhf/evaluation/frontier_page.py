"""The page of a comparison at common KL: tables, their CSV, JSON and picture."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from rarlhf.config.methods import RLHF, colours_of, label_of
from rarlhf.evaluation.figures import panel_grid, png
from rarlhf.evaluation.frontier import METRICS, FrontierRow, FrontierTable, mean_lines
from rarlhf.evaluation.pages import Page, chance_note, difference_columns, marked_difference, spread_text
from rarlhf.evaluation.tables import COLUMNS, NONE, aligned, number
from rarlhf.evaluation.words import counted, percent
from rarlhf.messages.markdown import escaped
from rarlhf.messages.markdown import table as markdown_table

GREY = "#8a8a8a"  # what is attainable


def frontier_page(table: FrontierTable) -> Page:
    """The page `frontier` of a comparison at common KL."""
    values, differences = _values(table), _differences(table)
    tables = [rows for rows in (values, differences) if len(rows) > 1]
    terminal = "\n\n".join([table.title, *map(aligned, tables), _notes(table)])
    parts = [escaped(table.title), *(markdown_table(rows[0], rows[1:]) for rows in tables), _notes(table)]
    markdown = "\n\n".join(parts) + "\n"
    return Page("frontier", terminal, markdown, csv_rows(table), as_content(table), _picture(table), _runs(table))


def _runs(table: FrontierTable) -> list[tuple[str, dict[str, str], dict[str, float]]]:
    return [
        (
            _label(row),
            {"method": row.method, "kl": f"{row.kl:g}"},
            {metric: spread["mean"] for metric, spread in row.metrics.items() if spread is not None},
        )
        for row in table.rows
    ]


def _values(table: FrontierTable) -> list[list[str]]:
    """At each KL a line for each method, then what is attainable."""
    heading = ["", *(COLUMNS[metric] for metric in METRICS), "seeds", "answers scored"]
    lines = [heading]
    for kl in table.kls:
        for row in (row for row in table.rows if row.kl == kl):
            scored = f"{table.scored[row.method]:,}" if row.method in table.scored else NONE
            metrics = (spread_text(row.metrics[metric], table.params.confidence) for metric in METRICS)
            lines.append([_label(row), *metrics, _seeds(row, len(table.seeds)), scored])
        if table.attainable:
            best = (attainable_at(table, metric, kl) for metric in METRICS)
            lines.append([f"attainable at KL {kl:g}", *(NONE if v is None else number(v) for v in best), NONE, NONE])
    return lines


def attainable_at(table: FrontierTable, metric: str, kl: float) -> float | None:
    """The attainable value of a metric at a KL; None where the samples do not show it."""
    points = table.attainable.get(metric, ())
    if not points or not points[0][0] <= kl <= points[-1][0]:
        return None
    kls, values = zip(*points, strict=True)
    return float(np.interp(np.sqrt(kl), np.sqrt(kls), values))


def _label(row: FrontierRow) -> str:
    return f"{label_of(row.method)} at KL {row.kl:g}"


def _seeds(row: FrontierRow, seeds: int) -> str:
    """How many seeds reach the KL."""
    return str(seeds) if not row.missing else f"{seeds - len(row.missing)} of {seeds}"


def _differences(table: FrontierTable) -> list[list[str]]:
    heading = [f"less {label_of(RLHF)}", *(COLUMNS[metric] for metric in METRICS), "seeds"]
    lines = [heading]
    for row in (row for row in table.rows if row.differences):
        first = row.differences[METRICS[0]]
        cells = (marked_difference(row.differences[metric]) for metric in METRICS)
        lines.append([_label(row), *cells, str(0 if first is None else first["n"])])
    return lines


def _notes(table: FrontierTable) -> str:
    level = percent(table.params.confidence)
    notes = [
        f"mean ± half-width of the {level} t interval over seeds; rewards, tails: higher is better; perplexity: lower",
        "each seed is interpolated to the KL between its own trainings, and SFT at KL 0: rewards in sqrt(KL), "
        "perplexity in KL; nothing is extrapolated",
    ]
    compared = sum(difference is not None for row in table.rows for difference in row.differences.values())
    if compared:
        notes.append(chance_note(compared, table.params.confidence))
    notes += [
        f"{label_of(row.method)} does not reach a KL of {row.kl:g} in {counted(len(row.missing), 'seed')}"
        for row in table.rows
        if row.missing
    ]
    if table.attainable:
        notes.append(
            "attainable: the mean of the policy of highest mean, the CVaR and the prompt tail of the policy of highest "
            "CVaR, among weightings of SFT's samples of that KL"
        )
    return "\n".join(notes)


def csv_rows(table: FrontierTable) -> list[list[object]]:
    """A heading, then a line for every metric of every method at every KL."""
    less = f"less {label_of(RLHF)}"
    interval = [less, f"{less}, low", f"{less}, high", f"{less}, seeds"]
    lines: list[list[object]] = [
        ["kl", "method", "metric", "mean", "std", "seeds", *interval, "attainable", "answers scored"]
    ]
    for row in table.rows:
        for metric in METRICS:
            spread, best = row.metrics[metric], attainable_at(table, metric, row.kl)
            numbers: list[object] = ["", "", 0]
            if spread is not None:
                numbers = [spread["mean"], "" if spread["std"] is None else spread["std"], spread["n"]]
            difference = difference_columns(row.differences.get(metric))
            known = ["" if best is None else best, table.scored.get(row.method, "")]
            lines.append([row.kl, row.method, metric, *numbers, *difference, *known])
    return lines


def as_content(table: FrontierTable) -> Mapping[str, Any]:
    """All of it, with the points of every seed."""
    return {
        "title": table.title,
        "seeds": list(table.seeds),
        "kl": list(table.kls),
        "confidence": table.params.confidence,
        "scored_answers": dict(table.scored),
        "rows": [asdict(row) for row in table.rows],
        "points": {method: [asdict(curve) for curve in curves] for method, curves in table.curves.items()},
        "attainable": table.attainable,
    }


def _picture(table: FrontierTable) -> bytes:
    """A panel for each metric: dots are the cells of each seed, lines the mean over seeds."""
    colours = colours_of(table.curves)
    titles = {
        "reward_cvar_10": "CVaR 10 % (score units)",
        "reward_prompt_tail": "prompt tail (score units)",
        "reward_mean": "mean reward (score units)",
        "perplexity_reference": "reference perplexity",
    }
    with panel_grid(2, 2, 7.4) as (figure, axes):
        for axis, (metric, title) in zip(axes, titles.items(), strict=True):
            _panel(axis, table, metric, colours)
            axis.set_title(title)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
        for axis in axes[2:]:
            axis.set_xlabel("KL to SFT (nats per response)")
        return png(figure)


def _panel(axis: Axes, table: FrontierTable, metric: str, colours: Mapping[str, str]) -> None:
    right = 1.08 * max(curve.kl[-1] for curves in table.curves.values() for curve in curves)
    best = np.array([point for point in table.attainable.get(metric, ()) if point[0] <= right])
    if len(best):
        axis.plot(best[:, 0], best[:, 1], color=GREY, linestyle=(0, (4, 2)), label="attainable")
    for method, curves in table.curves.items():
        line = np.array(list(mean_lines(curves, metric))).reshape(-1, 2)
        axis.plot(line[:, 0], line[:, 1], color=colours[method], label=label_of(method))
        for curve in curves:
            axis.scatter(curve.kl, curve.metrics[metric], s=12, color=colours[method], linewidths=0, zorder=3)
    for kl in table.kls:
        axis.axvline(kl, color="#555555", linewidth=0.7, linestyle=(0, (1, 2)))
    axis.set_xlim(0, right)
