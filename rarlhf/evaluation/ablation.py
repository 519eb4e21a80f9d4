"""The cells of an ablation side by side: one method of each over seeds, and its paired difference to a reference.

A cell is the same pipeline with some params changed; its evaluation is the content of its metrics/evaluate.json.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rarlhf.config.methods import in_order
from rarlhf.evaluation.evaluate import COMPARED, Evaluation
from rarlhf.evaluation.findings import LABELS, REWARDS, UNLIKE_KL
from rarlhf.evaluation.statistics import Difference, Spread, distinguishable, like_kl, paired_difference, percent
from rarlhf.evaluation.tables import COLUMNS, aligned, difference_text, with_half_width
from rarlhf.messages.markdown import escaped
from rarlhf.messages.markdown import table as markdown_table

REFERENCE = "rlhf"


@dataclass(frozen=True)
class Row:
    """One method of one cell, or of all of them where `cell` is None: it is the same in each.

    Attributes:
        cell: name of the cell.
        values: dotted key of params.yaml to the cell's value.
        method: as in params.yaml.
        metrics: each over seeds.
        differences: of five metrics, to the table's reference; empty for the reference itself.
        like_kl: whether it is at like KL with the reference; None for the reference itself.
    """

    cell: str | None
    values: Mapping[str, Any]
    method: str
    metrics: Mapping[str, Spread]
    differences: Mapping[str, Difference]
    like_kl: bool | None = None

    @property
    def label(self) -> str:
        """What the table calls the row."""
        return f"{LABELS[self.method]}, every cell" if self.cell is None else f"{LABELS[self.method]} {self.cell}"


@dataclass(frozen=True)
class Table:
    """The rows of an ablation, and what its differences are to."""

    title: str
    reference: str
    rows: Sequence[Row]
    confidence: float


def compare_cells(name: str, cells: Mapping[str, tuple[Mapping[str, Any], Evaluation]]) -> Table:
    """The last method of each cell, less RLHF of the same cell; without RLHF, less the first cell's.

    The last one is RA-RLHF, else RLHF, else SFT, else the base model.

    The differences to RLHF hold the errors of seeds and of test prompts (docs/evaluation.md), those to another cell the
    error of seeds alone.

    Args:
        name: of the ablation.
        cells: name -> its params and its evaluation, at least one, all with the same methods and seeds.
    """
    evaluations = {cell: evaluation for cell, (_, evaluation) in cells.items()}
    first_cell, first = next(iter(evaluations.items()))
    subject = in_order(first["methods"])[-1]
    to_rlhf = REFERENCE in first["methods"] and subject != REFERENCE
    rows = list(_reference_rows(cells)) if to_rlhf else []
    for cell, (values, evaluation) in cells.items():
        differences, alike = {}, None
        if to_rlhf:
            comparison = evaluation["comparisons"][f"{subject}_minus_{REFERENCE}"]
            differences, alike = comparison["metrics"], comparison["like_kl"]
        elif cell != first_cell:
            differences = _less(evaluation, first, subject)
            alike = like_kl(differences["kl_sft"], min(evaluation["kl_target"], first["kl_target"]))
        rows.append(Row(cell, values, subject, evaluation["methods"][subject], differences, alike))
    test, seeds = first["test"], ", ".join(map(str, first["seeds"]))
    title = (
        f"{name}: {len(cells)} cells on preset {first['preset']}, seeds {seeds}; {test['prompts']} test prompts x "
        f"{test['samples']} samples; prompt tail: {test['tail_prompts']} prompts"
    )
    return Table(title, LABELS[REFERENCE] if to_rlhf else first_cell, rows, first["confidence"])


def _reference_rows(cells: Mapping[str, tuple[Mapping[str, Any], Evaluation]]) -> Iterator[Row]:
    """RLHF of every cell, once where all have the same."""
    spreads = {cell: evaluation["methods"][REFERENCE] for cell, (_, evaluation) in cells.items()}
    first = next(iter(spreads.values()))
    if all(spread == first for spread in spreads.values()):
        yield Row(None, {}, REFERENCE, first, {})
    else:
        yield from (Row(cell, cells[cell][0], REFERENCE, spread, {}) for cell, spread in spreads.items())


def _less(evaluation: Evaluation, first: Evaluation, method: str) -> dict[str, Difference]:
    one, other = evaluation["methods"][method], first["methods"][method]
    return {
        metric: paired_difference(one[metric]["per_seed"], other[metric]["per_seed"], 0.0, first["confidence"])
        for metric in COMPARED
    }


def terminal(table: Table) -> str:
    """The table for a terminal."""
    values, differences = _cells(table)
    return "\n\n".join([table.title, aligned(values), *([aligned(differences)] if differences else []), _notes(table)])


def markdown(table: Table) -> str:
    """The table as Markdown."""
    values, differences = _cells(table)
    tables = [markdown_table(rows[0], rows[1:]) for rows in (values, differences) if rows]
    parts = [escaped(table.title), *tables, _notes(table)]
    return "\n\n".join(parts) + "\n"


def csv_rows(table: Table) -> list[list[object]]:
    """A heading, then a line for every metric of every row; the difference's columns are empty where there is none."""
    keys = list(dict.fromkeys(key for row in table.rows for key in row.values))
    less = f"less {table.reference}"
    heading: list[object] = ["cell", *keys, "method", "metric", "mean", "std", "seeds", "ci95_low", "ci95_high"]
    lines = [[*heading, less, f"{less}, low", f"{less}, high", f"{less}, like KL"]]
    for row in table.rows:
        named = [row.cell or "every cell", *(row.values.get(key, "") for key in keys), row.method]
        for metric, spread in row.metrics.items():
            numbers = [
                spread["mean"],
                "" if spread["std"] is None else spread["std"],
                spread["n"],
                *_ends(spread["ci95"]),
            ]
            alike = "" if row.like_kl is None else row.like_kl
            lines.append([*named, metric, *numbers, *_difference_columns(row.differences.get(metric)), alike])
    return lines


def _difference_columns(difference: Difference | None) -> list[object]:
    return ["", "", ""] if difference is None else [difference["mean"], *_ends(difference["interval"])]


def _ends(interval: Sequence[float] | None) -> Sequence[object]:
    return ["", ""] if interval is None else interval


def _cells(table: Table) -> tuple[list[list[str]], list[list[str]]]:
    """The metrics' table and the differences' table, each with its heading; the second empty where there is none."""
    values = [
        [row.label, *(with_half_width(row.metrics[metric], table.confidence) for metric in COLUMNS)]
        for row in table.rows
    ]
    differences = [
        [row.label + ("" if row.like_kl else " †"), *(_difference(row.differences[metric]) for metric in REWARDS)]
        for row in table.rows
        if row.differences
    ]
    heading = [f"less {table.reference}", *(COLUMNS[metric] for metric in REWARDS)]
    return [["", *COLUMNS.values()], *values], [heading, *differences] if differences else []


def _difference(difference: Difference) -> str:
    return difference_text(difference) + (" *" if distinguishable(difference["interval"]) else "")


def _notes(table: Table) -> str:
    level = percent(table.confidence)
    compared = sum(len(REWARDS) for row in table.rows if row.differences)
    notes = [f"mean ± half-width of the {level} t interval over seeds; reward, tails: higher is better"]
    if compared:
        chance = compared * (1 - table.confidence)
        notes.append(
            f"differences are paired by seed, with their {level} intervals; *: the interval leaves out zero, as about "
            f"{chance:.1f} of these {compared} would by chance alone"
        )
    if any(row.like_kl is False for row in table.rows):
        notes.append(UNLIKE_KL)
    return "\n".join(notes)
