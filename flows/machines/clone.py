"""A machine's clone of the repository: what it refuses to run, and how it is made ready for one stage."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ruamel.yaml import YAML

from flows.machines.request import RESULTS, Request, edited, head, other_version, versions
from flows.running.remote import opened
from flows.serving.workspace import HOME
from rarlhf.config.errors import UserError
from tasks.running.outputs import remove

SERVES = Path(HOME, "machine")  # there is such a file in a clone that was clean when it first served a pool
HEAD = {"schema": "2.0"}
SHOWN = 3  # edited files that a message names


def claim() -> None:
    """Makes this clone a machine's: from now on `params.yaml`, `dvc.lock` and `metrics/` are overwritten.

    Raises: UserError if somebody works in it.
    """
    if SERVES.exists():
        refuse_edited()
    elif found := edited(besides=()):
        raise UserError(f"this clone has edits ({_listed(found)}): a machine needs a clone that nobody works in")
    SERVES.parent.mkdir(exist_ok=True)
    SERVES.touch()


def refuse_edited() -> None:
    """Refuses a clone whose code is not the commit's.

    Raises: UserError naming files.
    """
    if found := edited():
        raise UserError(f"the code here is not that of the commit ({_listed(found)}): commit, or remove the edits")


def refuse(request: Request) -> None:
    """Refuses what would give other bytes here than in the run that asks.

    Raises: UserError with what differs.
    """
    if (here := head()) != request.commit:
        raise UserError(
            f"the clone here is at commit {here[:12]}, the run at {request.commit[:12]}: "
            f"`git fetch && git checkout {request.commit[:12]}` here"
        )
    refuse_edited()
    if told := other_version(request.versions, versions()):
        raise UserError(f"other packages: {told}; install what constraints.txt names, on both sides")


@contextmanager
def ready(request: Request) -> Iterator[None]:
    """The clone with the values and inputs of a request; tracked files are as in the commit afterwards.

    Raises: UserError if the remote cannot be read or lacks an input.
    """
    _reset()
    try:
        if request.params is not None:
            Path("params.yaml").write_text(request.params, encoding="utf-8")
        for path, text in request.files.items():
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).write_text(text, encoding="utf-8")
        with Path("dvc.lock").open("w", encoding="utf-8") as stream:
            YAML().dump({**HEAD, "stages": request.locked}, stream)
        _take_inputs(request)
        yield
    finally:
        _reset()


def _take_inputs(request: Request) -> None:
    """Puts the inputs of the request into the workspace, and nothing beside them into folders that the stage reads."""
    with opened(request.remote) as repo:
        (stage,) = repo.stage.collect(request.stage)
        wanted = {*request.inputs, *request.files}
        for dep in stage.deps:
            if dep.protocol == "local" and Path(dep.fs_path).is_relative_to(repo.root_dir):
                _clear(Path(os.path.relpath(dep.fs_path)), wanted)
        repo.pull(targets=request.inputs, remote=request.remote, force=True) if request.inputs else None


def _clear(folder: Path, wanted: set[str]) -> None:
    """Deletes what lies in a folder beside the wanted paths; a folder without any of them is left alone.

    A stage that reads all of models/ would see the models of other values that this clone has made.
    """
    if not folder.is_dir() or not any(Path(path).is_relative_to(folder) and path != str(folder) for path in wanted):
        return
    for entry in folder.iterdir():
        if str(entry) in wanted:
            continue
        if any(Path(path).is_relative_to(entry) for path in wanted):
            _clear(entry, wanted)
        else:
            remove(entry)


def _reset() -> None:
    """Puts the tracked files that stages write back to the commit's."""
    tracked = subprocess.run(["git", "ls-files", "--", *RESULTS], capture_output=True, text=True, check=True).stdout
    subprocess.run(["git", "checkout", "--quiet", "HEAD", "--", *tracked.splitlines()], check=True)


def _listed(paths: list[str]) -> str:
    more = f" and {len(paths) - SHOWN} more" if len(paths) > SHOWN else ""
    return ", ".join(paths[:SHOWN]) + more
