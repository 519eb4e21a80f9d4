"""The files of a git revision or DVC experiment that a comparison needs: `python -m tasks.revision REVISION FOLDER`.

`rarlhf compare` calls this. params.yaml and the metrics come from git, generations and judgements from DVC's cache by
the hashes of that revision's dvc.lock.
"""

import argparse
import shutil
import sys
from pathlib import Path

from dvc.api import DVCFileSystem
from dvc.exceptions import DvcException

from rarlhf.config.errors import UserError
from rarlhf.config.escapes import one_line
from rarlhf.evaluation.compare_sources import ERROR, GENERATIONS, JUDGEMENTS, METRICS, PARAMS


def copy_revision(revision: str, folder: Path) -> None:
    """Copies params.yaml and, where they are there, the evaluation, generations and judgements to a folder.

    Raises: UserError if there is no such revision, or it has no params.yaml.
    """
    files = _opened(revision)
    if not files.isfile(PARAMS):
        raise UserError(f"{one_line(revision)} has no {PARAMS}: name a revision of this project")
    for path in (PARAMS, METRICS):
        if files.isfile(path):
            (folder / path).parent.mkdir(exist_ok=True)
            (folder / path).write_bytes(files.read_bytes(path))
    for path in (GENERATIONS, JUDGEMENTS):
        try:
            files.get(path, str(folder / path), recursive=True)
        except Exception:  # DVC raises errors of many classes where its cache lacks a file or dvc.lock a stage
            shutil.rmtree(folder / path, ignore_errors=True)


def _opened(revision: str) -> DVCFileSystem:
    name = one_line(revision)
    try:
        files = DVCFileSystem(".", rev=revision)
        files.repo.get_rev()
    except DvcException as error:
        unknown = f"{name} is no folder, git revision or DVC experiment here"
        if Path(revision).is_dir():
            unknown = f"the folder {name} has no {PARAMS}, and there is no git revision or DVC experiment of that name"
        how = "look at `git branch --all`, `git tag` and `dvc exp list --all-commits`, or name a folder"
        raise UserError(f"{unknown} ({one_line(str(error))[:120]}); {how}") from error
    return files


def main() -> int:
    """Copies a revision as the arguments say; returns the exit status."""
    parser = argparse.ArgumentParser("python -m tasks.revision", description=__doc__)
    parser.add_argument("revision", help="git revision or DVC experiment")
    parser.add_argument("folder", type=Path, help="an existing folder")
    arguments = parser.parse_args()
    try:
        copy_revision(arguments.revision, arguments.folder)
    except UserError as error:
        print(f"{ERROR}{error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
