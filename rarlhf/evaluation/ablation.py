"""The cells of an ablation side by side: methods of each over seeds, and their paired differences to a reference.

A cell is the same pipeline with some params changed; its evaluation is the content of its metrics/evaluate.json.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from rarlhf.config.methods import RLHF, in_order, label_of
from rarlhf.config.params import EvaluateParams
from rarlhf.evaluation.comparisons import Evaluation
from rarlhf.evaluation.findings import MARK, REWARDS, compared_with_rlhf, mark_explained
from rarlhf.evaluation.names import COMPARED
from rarlhf.evaluation.pages import Page
from rarlhf.evaluation.statistics import Difference, Spread, distinguishable, like_kl, paired_difference
from rarlhf.evaluation.tables import COLUMNS, aligned, difference_text, tested_on, with_half_width
from rarlhf.evaluation.words import counted, listed, percent
from rarlhf.messages.markdown import escaped
from rarlhf.messages.markdown import table as markdown_table

Cells = Mapping[str, tuple[Mapping[str, Any], Evaluation]]  # name -> params that differ, evaluation


@dataclass(frozen=True)
class CellResult:
    """One method in one cell. `cell` is None if the method is the same in all cells.

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
        name = label_of(self.method)
        return f"{name}, every cell" if self.cell is None else f"{name} {self.cell}"


@dataclass(frozen=True)
class CellTable:
    """The rows of an ablation, and what its differences are to."""

    title: str
    reference: str
    rows: Sequence[CellResult]
    params: EvaluateParams


def compare_cells(name: str, cells: Cells, params: EvaluateParams) -> CellTable:
    """Each trained method of each cell, less RLHF of the same cell; without RLHF, less the first cell's.

    Where no method but RLHF is trained, the cells' last method is compared: RLHF, else SFT, else the base model.
    The differences to RLHF cover the errors of seeds and of test prompts (docs/evaluation.md). Those to another cell
    cover the error of seeds alone.

    Args:
        name: of the ablation.
        cells: at least one, all with the same methods and seeds.
        params: section `evaluate`, as in the first cell.
    """
    first_cell, (_, first) = next(iter(cells.items()))
    subjects = compared_with_rlhf(first) or in_order(first["methods"])[-1:]
    to_rlhf = RLHF in first["methods"] and subjects != [RLHF]
    rows = list(_reference_rows(cells)) if to_rlhf else []
    rows += _in_cells([list(_rows(subject, cells, params, to_rlhf)) for subject in subjects])
    title = (
        f"{name}: {counted(len(cells), 'cell')} on preset {first['preset']}, seeds {listed(first['seeds'])}; "
        f"{tested_on(first)}"
    )
    return CellTable(title, label_of(RLHF) if to_rlhf else first_cell, rows, params)


def _in_cells(compared: Sequence[Sequence[CellResult]]) -> Iterator[CellResult]:
    """Rows of all methods, cell by cell. A method that is equal in every cell has one row, unless all methods are."""
    varied = [_differ(of_method) for of_method in compared]
    for number, of_cell in enumerate(zip(*compared, strict=True)):
        for row, varies in zip(of_cell, varied, strict=True):
            if varies or not any(varied):
                yield row
            elif number == 0:
                yield replace(row, cell=None, values={})


def _rows(method: str, cells: Cells, params: EvaluateParams, to_rlhf: bool) -> Iterator[CellResult]:
    """A method's row for every cell."""
    first_cell, (_, first) = next(iter(cells.items()))
    for cell, (values, evaluation) in cells.items():
        differences, alike = {}, None
        if to_rlhf:
            comparison = evaluation["comparisons"][f"{method}_minus_{RLHF}"]
            differences, alike = comparison["metrics"], comparison["like_kl"]
        elif cell != first_cell:
            differences = _less(evaluation, first, method)
            alike = like_kl(differences["kl_sft"], min(evaluation["kl_target"], first["kl_target"]), params)
        yield CellResult(cell, values, method, evaluation["methods"][method], differences, alike)


def _reference_rows(cells: Cells) -> Iterator[CellResult]:
    """RLHF's row for each cell; one row if they are all equal."""
    rows = [CellResult(cell, values, RLHF, e["methods"][RLHF], {}) for cell, (values, e) in cells.items()]
    return iter(rows if _differ(rows) else [replace(rows[0], cell=None, values={})])


def _differ(rows: Sequence[CellResult]) -> bool:
    """Whether one of the rows has other numbers than the first."""
    first = rows[0]
    return any((row.metrics, row.differences) != (first.metrics, first.differences) for row in rows)


def _less(evaluation: Evaluation, first: Evaluation, method: str) -> dict[str, Difference]:
    one, other = evaluation["methods"][method], first["methods"][method]
    return {
        metric: paired_difference(one[metric]["per_seed"], other[metric]["per_seed"], 0.0, first["confidence"])
        for metric in COMPARED
        if metric in one and metric in other
    }


def terminal(table: CellTable) -> str:
    """The table for a terminal."""
    values, differences = _cells(table)
    return "\n\n".join([table.title, aligned(values), *([aligned(differences)] if differences else []), _notes(table)])


def markdown(table: CellTable) -> str:
    """The table as Markdown."""
    values, differences = _cells(table)
    tables = [markdown_table(rows[0], rows[1:]) for rows in (values, differences) if rows]
    parts = [escaped(table.title), *tables, _notes(table)]
    return "\n\n".join(parts) + "\n"


def csv_rows(table: CellTable) -> list[list[object]]:
    """A heading, then a line for every metric of every row; without a difference, its columns are empty."""
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


def cells_page(table: CellTable) -> Page:
    """The page `table` of cells side by side."""
    about = {"title": table.title, "reference": table.reference, "confidence": table.params.confidence}
    runs = [
        (
            row.label,
            {"method": row.method, **{key: str(value) for key, value in row.values.items()}},
            {metric: spread["mean"] for metric, spread in row.metrics.items()},
        )
        for row in table.rows
    ]
    content = {**about, "rows": [asdict(row) for row in table.rows]}
    return Page("table", terminal(table), markdown(table), csv_rows(table), content, runs=runs)


def _difference_columns(difference: Difference | None) -> list[object]:
    return ["", "", ""] if difference is None else [difference["mean"], *_ends(difference["interval"])]


def _ends(interval: Sequence[float] | None) -> Sequence[object]:
    return ["", ""] if interval is None else interval


def _cells(table: CellTable) -> tuple[list[list[str]], list[list[str]]]:
    """The metrics' table and the differences' table, each with its heading; the second is empty without differences."""
    values = [
        [row.label, *(with_half_width(row.metrics[metric], table.params.confidence) for metric in COLUMNS)]
        for row in table.rows
    ]
    differences = [
        [row.label + ("" if row.like_kl else f" {MARK}"), *(_difference(row.differences[metric]) for metric in REWARDS)]
        for row in table.rows
        if row.differences
    ]
    heading = [f"less {table.reference}", *(COLUMNS[metric] for metric in REWARDS)]
    return [["", *COLUMNS.values()], *values], [heading, *differences] if differences else []


def _difference(difference: Difference) -> str:
    return difference_text(difference) + (" *" if distinguishable(difference["interval"]) else "")


def _notes(table: CellTable) -> str:
    level = percent(table.params.confidence)
    compared = sum(len(REWARDS) for row in table.rows if row.differences)
    notes = [f"mean ± half-width of the {level} t interval over seeds; reward, tails: higher is better"]
    if compared:
        chance = compared * (1 - table.params.confidence)
        notes.append(
            f"differences are paired by seed, with their {level} intervals; *: the interval leaves out zero, as about "
            f"{chance:.1f} of these {compared} would by chance alone"
        )
    if any(row.like_kl is False for row in table.rows):
        notes.append(mark_explained(table.params))
    return "\n".join(notes)
