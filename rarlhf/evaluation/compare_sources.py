"""Where the runs of a comparison come from: a folder, a git revision, or a DVC experiment.

A revision's files are copied to a folder: params.yaml and metrics from git, generations from DVC's cache by the hashes
of that revision's dvc.lock.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from rarlhf.config.errors import UserError
from rarlhf.config.escapes import one_line

if TYPE_CHECKING:
    from dvc.api import DVCFileSystem

PARAMS, METRICS, GENERATIONS = "params.yaml", "metrics/evaluate.json", "generations"


@dataclass(frozen=True)
class Source:
    """One run's files.

    Attributes:
        name: as the user gave it, in one line.
        folder: with params.yaml, and with metrics/evaluate.json, generations/METHOD/SEED.jsonl, or both.
        lacking: how to get the generations, where there are none; else empty.
    """

    name: str
    folder: Path
    lacking: str = ""


@contextmanager
def opened(place: str) -> Iterator[Source]:
    """The files of a folder, a git revision, or a DVC experiment of the project in the current folder.

    A folder that holds params.yaml goes before a revision of the same name. A revision's files are deleted at the end.

    Raises: UserError if there is no such folder or revision, it has no params.yaml, it has neither generations nor
        metrics, or DVC is needed and not installed.
    """
    folder, name = Path(place), one_line(place)
    if (folder / PARAMS).is_file():
        lacking = "" if (folder / GENERATIONS).is_dir() else f"`dvc checkout` or `dvc repro` in {name} gets them"
        yield _checked(Source(name, folder, lacking))
        return
    with TemporaryDirectory(prefix="rarlhf-compare-") as copy:
        yield _checked(_copied(name, place, Path(copy)))


def _checked(source: Source) -> Source:
    if source.lacking and not (source.folder / METRICS).is_file():
        raise UserError(f"{source.name} has neither {GENERATIONS}/ nor {METRICS} to compare; {source.lacking}")
    return source


def _copied(name: str, revision: str, folder: Path) -> Source:
    files = _revision(name, revision)
    if not files.isfile(PARAMS):
        raise UserError(f"{name} has no {PARAMS}: name a revision of this project")
    for path in (PARAMS, METRICS):
        if files.isfile(path):
            (folder / path).parent.mkdir(exist_ok=True)
            (folder / path).write_bytes(files.read_bytes(path))
    try:
        files.get(GENERATIONS, str(folder / GENERATIONS), recursive=True)
        return Source(name, folder)
    except Exception:  # DVC raises errors of many classes where its cache lacks a file or dvc.lock a stage
        shutil.rmtree(folder / GENERATIONS, ignore_errors=True)
    how = f"`dvc fetch --all-commits` or, for an experiment, `dvc exp pull REMOTE {name}` gets them from a remote"
    return Source(name, folder, f"DVC's cache lacks them; {how}")


def _revision(name: str, revision: str) -> "DVCFileSystem":
    if Path(revision).is_dir():
        unknown = f"the folder {name} has no {PARAMS}, and there is no git revision or DVC experiment of that name"
    else:
        unknown = f"{name} is no folder, git revision or DVC experiment here"
    how = "look at `git branch --all`, `git tag` and `dvc exp list --all-commits`, or name a folder"
    try:
        from dvc.api import DVCFileSystem
        from dvc.exceptions import DvcException
    except ImportError:
        raise UserError(
            f"{name} is no folder with {PARAMS}, and DVC, which reads git revisions and experiments, is not installed: "
            "name a folder, or install the extra `pipeline` of this project"
        ) from None
    try:
        files = DVCFileSystem(".", rev=revision)
        files.repo.get_rev()
    except DvcException as error:
        raise UserError(f"{unknown} ({one_line(str(error))[:120]}); {how}") from error
    return files
