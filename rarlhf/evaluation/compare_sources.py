"""Where the runs of a comparison come from: a folder, a git revision, or a DVC experiment.

The files of a revision are copied to a folder by `python -m tasks.revision`, which knows DVC.
"""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from rarlhf.config.errors import UserError
from rarlhf.config.escapes import one_line

ERROR = "error: "  # how a line begins that says what is wrong
PARAMS, METRICS, GENERATIONS = "params.yaml", "metrics/evaluate.json", "generations"
JUDGEMENTS = "judgements"


@dataclass(frozen=True)
class Source:
    """One run's files.

    Attributes:
        name: as the user gave it, in one line.
        folder: with params.yaml, and with metrics/evaluate.json, generations/METHOD/SEED.jsonl, or both; perhaps with
            judgements/METHOD/SEED.safetensors.
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
        metrics, or the pipeline is needed and not there.
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
    command = [sys.executable, "-m", "tasks.revision", revision, str(folder)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)  # the library knows no DVC
    if done.returncode:
        last = done.stderr.strip().rpartition("\n")[2]
        raise UserError(last.removeprefix(ERROR) if last.startswith(ERROR) else _no_pipeline(name))
    how = f"`dvc fetch --all-commits` or, for an experiment, `dvc exp pull REMOTE {name}` gets them from a remote"
    lacking = "" if (folder / GENERATIONS).is_dir() else f"DVC's cache lacks them; {how}"
    return Source(name, folder, lacking)


def _no_pipeline(name: str) -> str:
    return (
        f"{name} is no folder with {PARAMS}, and the pipeline that opens git revisions and DVC experiments cannot be "
        "started here: call this in the project's folder with its extra `pipeline` installed, or name a folder"
    )
