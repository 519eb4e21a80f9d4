"""What a machine is asked to do: one stage, at a commit, with the values and inputs of the run that asks."""

import hashlib
import subprocess
import tomllib
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import python_version
from typing import Any

from pydantic import BaseModel, ConfigDict

from rarlhf.config.errors import UserError

ROOT = Path(__file__).parents[2]
RESULTS = ("params.yaml", "dvc.lock", "metrics")  # tracked files that may differ from the commit: they hold no code
EXTRAS = ("pipeline", "judges", "utility")  # what stages import besides the library's own requirements


class Request(BaseModel):
    """One stage for a machine. A flow run keeps it, so it holds names and hashes, and no bytes of results.

    Attributes:
        stage: its name in dvc.yaml.
        commit: of the code.
        versions: of the packages that a stage imports, and of Python.
        remote: name of the DVC remote, in the run's clone and in the machine's.
        force: whether the stage runs though its results are known.
        params: text of params.yaml, where it is not that of the commit.
        files: path to text of the stage's inputs that git keeps and DVC does not, such as metrics/second_scorer.json.
        locked: what dvc.lock says of the outputs of other stages that this one reads: their paths and hashes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: str
    commit: str
    versions: dict[str, str]
    remote: str
    force: bool
    params: str | None
    files: dict[str, str]
    locked: dict[str, Any]

    @property
    def digest(self) -> str:
        """SHA-256 of all of it: two runs that ask for the same have the same."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    @property
    def inputs(self) -> list[str]:
        """Paths that are taken from the remote."""
        return [out["path"] for entry in self.locked.values() for out in entry["outs"]]


def head() -> str:
    """The commit that is checked out.

    Raises: UserError if there is none.
    """
    found = _git("rev-parse", "--verify", "--quiet", "HEAD").strip()
    if not found:
        raise UserError("stages run on other machines at a commit; this folder is no git repository with a commit")
    return found


def edited(besides: tuple[str, ...] = RESULTS) -> list[str]:
    """Files that are not as in the commit, new ones that git does not ignore included, besides some paths."""
    told = _git("status", "--porcelain", "--", ".", *(f":!{path}" for path in besides))
    return [line[3:] for line in told.splitlines()]


def committed(path: str) -> str:
    """A file's text in the commit that is checked out; empty where it has none."""
    return _git("show", f"HEAD:{path}")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that stages import, as far as they are installed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *(name for extra in EXTRAS for name in project["optional-dependencies"][extra])]
    found = {"python": ".".join(python_version().split(".")[:2])}
    for requirement in wanted:
        name = requirement.partition(">")[0].partition("<")[0]
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def other_version(asked: Mapping[str, str], here: Mapping[str, str]) -> str:
    """The first package of a run that is missing on this machine or has another version; empty where all agree."""
    for name, wanted in asked.items():
        if here.get(name) != wanted:
            return f"{name} {here.get(name, 'is missing')} here, {wanted} there"
    return ""


def _git(*words: str) -> str:
    try:
        return subprocess.run(["git", *words], capture_output=True, text=True, check=False).stdout
    except OSError:
        return ""
