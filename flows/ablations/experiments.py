"""DVC experiments: finds those that have run before, runs one in a workspace of its own, and reads what it measured."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import TYPE_CHECKING, Any, cast

from flows.ablations.cells import CHOSEN, Cell
from flows.running.processes import Processes
from rarlhf.config.errors import UserError
from rarlhf.config.load import load_params
from rarlhf.config.params import Params
from tasks.preset import PARAMS
from tasks.tracking.passwords import without_passwords

if TYPE_CHECKING:
    from rarlhf.evaluation.comparisons import Evaluation

METRICS = "metrics/evaluate.json"
RESULTS = ("params.yaml", "dvc.lock", "metrics")  # what differs between experiments on the same code
STARTED = "Reproducing experiment"  # DVC's line after which the main workspace is as it was
RAN = re.compile(r"^Running stage '(.+)':")
REUSED = re.compile(r"^Stage '(.+)' (?:is cached - skipping run|didn't change, skipping)")


class ExperimentError(Exception):
    """An experiment failed; the text is its error."""


@dataclass(frozen=True)
class Outcome:
    """What one experiment took: how many stages ran, and how many were skipped because their outputs exist."""

    ran: int
    reused: int


class Experiments:
    """Experiments on the commit that is checked out, with the changes of tracked files that are not committed.

    Args:
        processes: those that run; none starts once they are stopped.

    Raises: UserError where there is no git repository with a commit.
    """

    def __init__(self, processes: Processes) -> None:
        self._head = _git("rev-parse", "--verify", "--quiet", "HEAD").strip()
        if not self._head:
            raise UserError("an ablation's cells are DVC experiments, which need a git repository with a commit")
        self.processes = processes
        self._starting = Lock()  # one at a time: DVC stashes the main workspace's changes for a moment

    def name_for(self, cell: Cell, taken: Container[str]) -> tuple[str, bool]:
        """An experiment's name for a cell, and whether it has run before with the same params and code.

        `-2` and so on is added to a name that is in `taken` or that another experiment has.
        """
        number, name = 1, cell.name
        while name in taken or not self._free_or_of(name, cell.params):
            number += 1
            name = f"{cell.name}-{number}"
        return name, self.evaluation(name) is not None

    def evaluation(self, name: str) -> "Evaluation | None":
        """What an experiment measured; None if there is none, or the cache has lost its outputs."""
        from dvc.api import read
        from dvc.exceptions import DvcException

        revision = self._revision(name)
        if not revision:
            return None
        try:
            return cast("Evaluation", json.loads(read(METRICS, rev=revision)))
        except (DvcException, OSError):
            return None

    def run(
        self,
        name: str,
        values: Mapping[str, Any],
        targets: Sequence[str],
        share: Mapping[str, str],
        say: Callable[[str], None],
    ) -> Outcome:
        """Reproduces the targets, or everything, as an experiment in a temporary workspace.

        Args:
            name: of the experiment; an old one of that name is removed.
            values: dotted keys of params.yaml and their values.
            targets: names of stages; all where empty.
            share: variables that are added to the environment.
            say: takes every line of output.

        Raises: ExperimentError with the error of a failed one.
        """
        self.remove(name)
        settings = [word for key, value in values.items() for change in _changes(key, value) for word in ("-S", change)]
        command = ["exp", "run", "--temp", "--name", name, *settings, *targets]
        status, lines = self._run(command, share, say)
        if status:
            told = [line for line in lines if line.startswith(("error:", "ERROR:"))] or lines[-1:]
            raise ExperimentError(f"{name}: {' '.join(told)}")
        return Outcome(*(sum(bool(pattern.match(line)) for line in lines) for pattern in (RAN, REUSED)))

    def remove(self, name: str) -> None:
        """Removes an experiment, if there is one of that name; its outputs stay in the cache."""
        if self._revision(name):
            with self._starting:
                subprocess.run([*_DVC, "exp", "remove", "--quiet", name], check=True)

    def _run(
        self, command: Sequence[str], share: Mapping[str, str], say: Callable[[str], None]
    ) -> tuple[int, list[str]]:
        """The exit status of `dvc` and its lines."""
        lines: list[str] = []

        def read(until: str | None) -> None:
            assert process.stdout is not None
            for line in process.stdout:
                lines.append(without_passwords(line.rstrip()))
                say(lines[-1])
                if until and line.startswith(until):
                    break

        with self._starting:
            process = self.processes.start([*_DVC, *command], share)
            read(until=STARTED)
        read(until=None)
        return process.wait(), lines

    def _free_or_of(self, name: str, params: Params) -> bool:
        revision = self._revision(name)
        return not revision or self._is_of(revision, params)

    def _is_of(self, revision: str, params: Params) -> bool:
        """Whether a commit has these params and the code of the workspace."""
        same_code = ["diff", "--quiet", revision, "--", ".", *(f":!{path}" for path in RESULTS)]
        if subprocess.run(["git", *same_code], check=False).returncode != 0:
            return False
        with TemporaryDirectory() as folder:
            path = Path(folder, "params.yaml")
            path.write_text(_git("show", f"{revision}:params.yaml"), encoding="utf-8")
            try:
                return load_params(path) == params
            except UserError:
                return False

    def _revision(self, name: str) -> str:
        """The commit of an experiment; empty where there is none."""
        return _git("rev-parse", "--verify", "--quiet", f"refs/exps/{self._head[:2]}/{self._head[2:]}/{name}").strip()


def _changes(key: str, value: Any) -> list[str]:
    """What `dvc exp run -S` is told, so that a key gets its value.

    DVC merges a mapping into the one that is there, so that entries which are not to stay are removed by name.
    """
    if key not in CHOSEN:
        return [f"{key}={json.dumps(value)}"]
    there = getattr(load_params(PARAMS).methods, key.removeprefix("methods."))
    return [f"~{key}.{name}" for name in there if name not in value]


_DVC = [sys.executable, "-m", "dvc", "--wait-for-lock"]


def _git(*words: str) -> str:
    try:
        return subprocess.run(["git", *words], capture_output=True, text=True, check=False).stdout
    except OSError:
        return ""
