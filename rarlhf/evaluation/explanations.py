"""The experiment that separates the explanations of the paper's gain: how far cells lie above RLHF's own curve.

RLHF at several fixed KL coefficients gives, for each seed, the reward that KL alone buys. A cell of another method is
compared with that curve at its own KL, seed by seed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from rarlhf.config.methods import LOOKS, RLHF, in_order, is_trained, label_of
from rarlhf.config.params import EvaluateParams
from rarlhf.evaluation.ablation import Cells
from rarlhf.evaluation.comparisons import Evaluation
from rarlhf.evaluation.figures import panel_grid, png
from rarlhf.evaluation.findings import REWARDS
from rarlhf.evaluation.frontier import SeedCurve, mean_lines, paired, seed_curves
from rarlhf.evaluation.generations import FloatArray
from rarlhf.evaluation.pages import Page, chance_note, difference_columns, marked_difference, spread_text
from rarlhf.evaluation.statistics import Difference, Spread
from rarlhf.evaluation.tables import COLUMNS, aligned, number, tested_on
from rarlhf.evaluation.words import counted, listed, percent
from rarlhf.messages.markdown import escaped
from rarlhf.messages.markdown import table as markdown_table

COLOURS = ("#c24e00", "#b3005e", "#7b3294", "#00805d", "#8c6d00")  # of the rankings
MARKERS = ("o", "^", "s", "D")  # of the averages
KEYS = ("risk.ranking", "kl.average", "risk.dropped")  # what the grid varies: colour, marker, filled or open


@dataclass(frozen=True)
class ExplainedRow:
    """One method in one cell.

    Attributes:
        cell: its name.
        values: dotted key of params.yaml to the cell's value.
        method: as in params.yaml.
        metrics: each over seeds.
        above: of each reward, the difference to RLHF's curve at the same KL, over the seeds whose KL the curve has;
            None where it has none of them; empty for the curve's own cells.
        deciles: (10,) KL in nats by decile of the prompt's own score, lowest first, mean over seeds.
    """

    cell: str
    values: Mapping[str, Any]
    method: str
    metrics: Mapping[str, Spread]
    above: Mapping[str, Difference | None]
    deciles: FloatArray


@dataclass(frozen=True)
class ExplainedTable:
    """The cells, and RLHF's curve: one for each seed."""

    title: str
    rows: Sequence[ExplainedRow]
    reference: Sequence[SeedCurve]
    params: EvaluateParams


def explain(name: str, cells: Cells, params: EvaluateParams) -> ExplainedTable | None:
    """Every trained method of every cell, and how far it lies above RLHF's curve.

    Args:
        name: of the experiment.
        cells: all with the same seeds; those with `kl.rate` 0 and RLHF make the curve, with SFT at KL 0.
        params: section `evaluate`.

    Returns: None where no cell of the curve was measured.
    """
    on_curve = {cell for cell, (values, e) in cells.items() if values.get("kl.rate") == 0 and RLHF in e["methods"]}
    if not on_curve:
        return None
    reference = seed_curves([cells[cell][1] for cell in cells if cell in on_curve], RLHF)
    rows = [
        _row(cell, values, method, evaluation, [] if cell in on_curve else reference, params)
        for cell, (values, evaluation) in cells.items()
        for method in in_order(evaluation["methods"])
        if is_trained(method)
    ]
    _, first = next(iter(cells.values()))
    title = (
        f"{name}: {counted(len(cells), 'cell')} on preset {first['preset']}, "
        f"{counted(len(first['seeds']), 'seed')} ({listed(first['seeds'])}); {tested_on(first)}"
    )
    return ExplainedTable(title, rows, reference, params)


def _row(
    cell: str,
    values: Mapping[str, Any],
    method: str,
    evaluation: Evaluation,
    reference: Sequence[SeedCurve],
    params: EvaluateParams,
) -> ExplainedRow:
    metrics = evaluation["methods"][method]
    kl = metrics["kl_sft"]["per_seed"]
    above = {}
    for metric in REWARDS if reference else ():
        curve = [of_seed.at(metric, at) for of_seed, at in zip(reference, kl, strict=True)]
        above[metric] = paired(metrics[metric]["per_seed"], curve, 0.0, params.confidence)
    deciles = np.array(evaluation["kl_by_decile"][method]).mean(axis=0)
    return ExplainedRow(cell, values, method, metrics, above, deciles)


def explanations_page(table: ExplainedTable) -> Page:
    """The page `explanations`."""
    shown = [_values(table), _above(table), _deciles(table)]
    tables = [rows for rows in shown if len(rows) > 1]
    notes = _notes(table)
    terminal = "\n\n".join([table.title, *map(aligned, tables), notes])
    parts = [escaped(table.title), *(markdown_table(rows[0], rows[1:]) for rows in tables), notes]
    markdown = "\n\n".join(parts) + "\n"
    content, picture = _as_content(table), _picture(table)
    return Page("explanations", terminal, markdown, _csv_rows(table), content, picture, _runs(table))


def _runs(table: ExplainedTable) -> list[tuple[str, dict[str, str], dict[str, float]]]:
    return [
        (
            _label(row),
            {"method": row.method, **{key: str(value) for key, value in row.values.items()}},
            {metric: spread["mean"] for metric, spread in row.metrics.items()},
        )
        for row in table.rows
    ]


def _label(row: ExplainedRow) -> str:
    return f"{label_of(row.method)} {row.cell}"


def _values(table: ExplainedTable) -> list[list[str]]:
    lines = [["", *COLUMNS.values()]]
    for row in table.rows:
        lines.append([_label(row), *(spread_text(row.metrics[metric], table.params.confidence) for metric in COLUMNS)])
    return lines


def _above(table: ExplainedTable) -> list[list[str]]:
    lines = [[f"above {label_of(RLHF)}'s curve", *(COLUMNS[metric] for metric in REWARDS), "seeds"]]
    for row in (row for row in table.rows if row.above):
        first = row.above[REWARDS[0]]
        cells = (marked_difference(row.above[metric]) for metric in REWARDS)
        lines.append([_label(row), *cells, str(0 if first is None else first["n"])])
    return lines


def _deciles(table: ExplainedTable) -> list[list[str]]:
    lines = [["KL by decile of the prompt score", *map(str, range(1, 1 + len(table.rows[0].deciles)))]]
    for row in table.rows:
        lines.append([_label(row), *map(number, row.deciles.tolist())])
    return lines


def _notes(table: ExplainedTable) -> str:
    compared = sum(difference is not None for row in table.rows for difference in row.above.values())
    reach = ", ".join(f"{curve.kl[-1]:.2f}" for curve in table.reference)
    notes = [
        f"mean ± half-width of the {percent(table.params.confidence)} t interval over seeds",
        f"{label_of(RLHF)}'s curve: its trainings at fixed KL coefficients and SFT at KL 0, for each seed, rewards "
        f"linear in sqrt(KL) between them; it ends at {reach} nats, and beyond that there is no difference",
        "decile 1: the tenth of the test prompts with the lowest scores of their own",
    ]
    return "\n".join([*notes, *([chance_note(compared, table.params.confidence)] if compared else [])])


def _csv_rows(table: ExplainedTable) -> list[list[object]]:
    keys = list(dict.fromkeys(key for row in table.rows for key in row.values))
    above = f"above {label_of(RLHF)}'s curve"
    lines: list[list[object]] = [
        ["cell", *keys, "method", "metric", "mean", "std", "seeds", above, f"{above}, low", f"{above}, high",
         f"{above}, seeds"]
    ]  # fmt: skip
    for row in table.rows:
        named = [row.cell, *(row.values.get(key, "") for key in keys), row.method]
        for metric in COLUMNS:
            spread = row.metrics[metric]
            numbers = [spread["mean"], "" if spread["std"] is None else spread["std"], spread["n"]]
            lines.append([*named, metric, *numbers, *difference_columns(row.above.get(metric))])
        for decile, kl in enumerate(row.deciles.tolist(), 1):
            lines.append([*named, f"kl_sft, decile {decile}", kl, "", row.metrics["kl_sft"]["n"], "", "", "", ""])
    return lines


def _as_content(table: ExplainedTable) -> Mapping[str, Any]:
    return {
        "title": table.title,
        "confidence": table.params.confidence,
        "reference": [asdict(curve) for curve in table.reference],
        "rows": [asdict(row) | {"deciles": row.deciles.tolist()} for row in table.rows],
    }


def _picture(table: ExplainedTable) -> bytes:
    """Mean, CVaR and prompt tail against KL with RLHF's curve; KL by decile."""
    titles = {
        "reward_mean": "mean reward (score units)",
        "reward_cvar_10": "CVaR 10 % (score units)",
        "reward_prompt_tail": "prompt tail (score units)",
    }
    with panel_grid(2, 2, 8.0) as (figure, axes):
        for axis, (metric, title) in zip(axes, titles.items(), strict=False):
            _curve_panel(axis, table, metric)
            axis.set_title(title)
            axis.set_xlabel("KL to SFT (nats per response)")
        for row in table.rows:
            places, line = range(1, 1 + len(row.deciles)), "--" if row.values.get(KEYS[2]) == "pay_kl" else "-"
            axes[3].plot(places, row.deciles, color=_colour(table, row), linestyle=line, linewidth=1.2)
        axes[3].set_title("KL (nats per response)")
        axes[3].set_xlabel("decile of the prompt's own score, lowest first")
        _legend(axes[3], table)
        handles, labels = axes[3].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
        return png(figure)


def _curve_panel(axis: Axes, table: ExplainedTable, metric: str) -> None:
    colour = LOOKS[RLHF].colour
    line = np.array(list(mean_lines(table.reference, metric))).reshape(-1, 2)
    axis.plot(line[:, 0], line[:, 1], color=colour)
    for row in table.rows:
        style = _marker(table, row)
        axis.scatter(
            row.metrics["kl_sft"]["per_seed"], row.metrics[metric]["per_seed"], s=26, zorder=3, linewidths=1.1, **style
        )


def _choices(table: ExplainedTable, key: str) -> list[Any]:
    return list(dict.fromkeys(row.values[key] for row in table.rows if key in row.values))


def _colour(table: ExplainedTable, row: ExplainedRow) -> str:
    """Of the cell's ranking; RLHF has its own."""
    if row.method == RLHF or KEYS[0] not in row.values:
        return LOOKS[RLHF].colour if row.method == RLHF else "#333333"
    return COLOURS[_choices(table, KEYS[0]).index(row.values[KEYS[0]]) % len(COLOURS)]


def _marker(table: ExplainedTable, row: ExplainedRow) -> dict[str, Any]:
    colour = _colour(table, row)
    averages = _choices(table, KEYS[1])
    known = row.method != RLHF and KEYS[1] in row.values
    marker = MARKERS[averages.index(row.values[KEYS[1]]) % len(MARKERS)] if known else "."
    filled = row.values.get(KEYS[2]) != "pay_kl"
    return {"marker": marker, "edgecolors": colour, "facecolors": colour if filled else "none"}


def _legend(axis: Axes, table: ExplainedTable) -> None:
    """Names colours, markers and fillings, by marks that are nowhere drawn."""
    axis.plot([], [], color=LOOKS[RLHF].colour, marker=".", label=f"{label_of(RLHF)}, fixed KL coefficient")
    for position, value in enumerate(_choices(table, KEYS[0])):
        axis.plot([], [], color=COLOURS[position % len(COLOURS)], label=f"{KEYS[0]}: {value}")
    for position, value in enumerate(_choices(table, KEYS[1])):
        axis.plot([], [], color="#333333", linestyle="", marker=MARKERS[position], label=f"{KEYS[1]}: {value}")
    for value, filled in (("free", "full"), ("pay_kl", "none")):
        axis.plot([], [], color="#333333", linestyle="", marker="o", fillstyle=filled, label=f"{KEYS[2]}: {value}")
