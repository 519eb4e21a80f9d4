"""The DVC experiments on the current commit, side by side: `python -m flows.experiments`, or `make exp`.

`dvc exp show` has a column for every parameter, metric and hash, hundreds of them. Here a run has a row for each method
of which something differs from the commit, and its changed params stand below the table.
"""

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rarlhf.config.escapes import one_line
from rarlhf.config.methods import in_order, label_of
from rarlhf.config.refusals import read_yaml
from rarlhf.evaluation.comparisons import SHORT
from rarlhf.evaluation.names import COMPARED
from rarlhf.evaluation.tables import COLUMNS, NONE, aligned, flat

METRIC = re.compile(r"metrics/summary/(?P<method>\w+)\.json:(?P<metric>\w+)")  # what DVC calls a metric of a method
WORKSPACE = "workspace"
Run = Mapping[str, Any]  # column of `dvc exp show` -> value


def main() -> int:
    """Prints the table; 0 if DVC can read the project."""
    from dvc.api import exp_show
    from dvc.exceptions import DvcException

    try:
        runs = exp_show()
    except DvcException as error:
        print(f"error: DVC cannot read the experiments: {one_line(str(error))}", file=sys.stderr)
        return 1
    print(table(runs, list(flat(read_yaml(Path("params.yaml"))))))
    return 0


def table(runs: Sequence[Run], keys: Sequence[str]) -> str:
    """The text that is printed.

    Args:
        runs: the workspace, the commit, then the experiments on it, as `dvc.api.exp_show` gives them.
        keys: dotted keys of params.yaml.
    """
    first, *others = sorted(runs, key=lambda run: run["rev"] == WORKSPACE)  # the commit comes first
    rows = [["", "method", *(COLUMNS[metric] for metric in COMPARED)], *_rows(first, {})]
    told = []
    for run in others:
        rows += _rows(run, first)
        changed = [f"{key} {run.get(key)} ({first.get(key)})" for key in keys if run.get(key) != first.get(key)]
        told.append(f"{name_of(run)}: {one_line(', '.join(changed)) or 'params as in the commit'}")
    note = f"Rows below {name_of(first)}: the methods whose numbers differ from it. Its own values are in brackets."
    return "\n".join([aligned(rows), "", *told, *([note] if others else [])])


def name_of(run: Run) -> str:
    """An experiment's name, or the revision."""
    return one_line(str(run["Experiment"] or run["rev"]))


def _rows(run: Run, reference: Run) -> Iterator[list[str]]:
    """A row for each method whose numbers are not those of the reference."""
    methods = {found["method"] for column in run if (found := METRIC.fullmatch(column))}
    for method in in_order(sorted(methods)):
        columns = [f"metrics/summary/{method}.json:{SHORT.get(metric, metric)}" for metric in COMPARED]
        values = [run.get(column) for column in columns]
        if values != [reference.get(column) for column in columns] and any(value is not None for value in values):
            yield [name_of(run), label_of(method), *(NONE if value is None else f"{value:.3f}" for value in values)]


if __name__ == "__main__":
    sys.exit(main())
