"""The files utility/METHOD.json: what stage `utility` writes and stage `evaluate` reads."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rarlhf.config.errors import UserError
from rarlhf.system.files import write_json

CLASSIFICATION = "classification_auc"  # a metric
TASK_PREFIX = "utility_"  # of the metrics of tasks
AGAIN = "run `dvc repro utility` again"


@dataclass(frozen=True)
class TaskResult:
    """How a model did in one task."""

    accuracy: float  # share of right answers, of a group as the group weighs its tasks
    error: float | None  # standard error of the accuracy from the choice of questions; None where it is not known
    questions: int


@dataclass(frozen=True)
class Utility:
    """What one model can do."""

    auc: float | None = None  # of a linear classifier on its states; None if none was fitted
    tasks: Mapping[str, TaskResult] = field(default_factory=dict)

    @property
    def metrics(self) -> dict[str, float]:
        """Metric -> value."""
        auc = {} if self.auc is None else {CLASSIFICATION: self.auc}
        return auc | {f"{TASK_PREFIX}{name}": result.accuracy for name, result in self.tasks.items()}

    def record(self) -> dict[str, Any]:
        """As JSON."""
        auc = {} if self.auc is None else {CLASSIFICATION: self.auc}
        return auc | {"tasks": {name: vars(result) for name, result in self.tasks.items()}}


def write_utility(by_seed: Mapping[int, Utility], path: Path) -> None:
    """Writes one utility/METHOD.json."""
    write_json(path, {"seeds": {str(seed): utility.record() for seed, utility in by_seed.items()}})


def read_utility(folder: Path, methods: Sequence[str], seeds: Sequence[int]) -> dict[str, dict[int, Utility]]:
    """Reads the results of the methods that have some.

    Args:
        folder: METHOD.json; none where section `utility` is off.
        methods: names of all methods of the run.
        seeds: of the run.

    Returns: method -> seed -> utility.

    Raises: UserError if a file is broken, or of other seeds.
    """
    paths = {method: folder / f"{method}.json" for method in methods}
    return {method: _read(path, seeds) for method, path in paths.items() if path.is_file()}


def _read(path: Path, seeds: Sequence[int]) -> dict[int, Utility]:
    try:
        by_seed = json.loads(path.read_text(encoding="utf-8"))["seeds"]
        found = {int(seed): _utility(record) for seed, record in by_seed.items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is not whole ({error}): {AGAIN}") from error
    if list(found) != list(seeds):
        raise UserError(f"{path} is of seeds {', '.join(map(str, found))}, and the run has others: {AGAIN}")
    return found


def _utility(record: Mapping[str, Any]) -> Utility:
    return Utility(record.get(CLASSIFICATION), {name: TaskResult(**result) for name, result in record["tasks"].items()})
