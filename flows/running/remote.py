"""Takes results that other workspaces have computed from a DVC remote, and sends this workspace's results there.

DVC's run cache is taken and sent too. It knows a stage's outputs by its inputs, so a workspace finds a result that its
dvc.lock does not name. `python -m flows.running.remote NAME STAGE` takes a stage's results if the remote has them.

`dvc repro --pull` would need less code, but it takes from the default remote only, not from one that is named, and it
copies the remote's whole run cache again for each stage.
"""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rarlhf.config.errors import PASSING_STATUS, PassingError, UserError, may_pass
from tasks.tracking.passwords import without_passwords

if TYPE_CHECKING:
    from dvc.repo import Repo


def fetch_run_cache(name: str) -> None:
    """Copies the remote's run cache; the results themselves are taken stage by stage.

    Raises: UserError if DVC has no remote of that name, or if it cannot be read.
    """
    from dvc.stage.cache import RunCacheNotSupported

    with opened(name) as repo, repo.lock:
        known = sorted(repo.config["remote"])
        if name not in known:
            there = f"there are {', '.join(known)}" if known else "there is none"
            raise UserError(f"DVC has no remote {name}; {there} (`dvc remote add {name} ADDRESS` makes one)")
        try:
            repo.stage_cache.pull(name)
        except RunCacheNotSupported as error:
            told = without_passwords(str(error))
            raise UserError(f"remote {name} cannot hold what stages made: {told}") from None


def restore(name: str, stage: str) -> bool:
    """Puts a stage's results into the workspace if they are missing there; returns False if the remote lacks them."""
    from dvc.stage.cache import RunCacheNotFoundError

    with opened(name) as repo, repo.lock:
        (found,) = repo.stage.collect(stage)
        if not found.changed():
            return True
        try:
            repo.stage_cache.restore(found, pull=True)
        except RunCacheNotFoundError:
            return False
    return True


def push(name: str, stages: Iterable[str]) -> int:
    """Sends the stages' results and the run cache to the remote; returns the number of files that were sent."""
    with opened(name) as repo:
        return int(repo.push(targets=list(stages), remote=name, run_cache=True))


@contextmanager
def opened(name: str) -> "Iterator[Repo]":
    """The repository; errors of the remote come without the password that its address may hold."""
    from dvc.exceptions import DownloadError, DvcException, UploadError
    from dvc.repo import Repo

    try:
        with Repo(config={"core": {"remote": name}}, _wait_for_lock=True) as repo:
            yield repo
    except UserError:
        raise
    except Exception as error:
        if not (isinstance(error, DvcException | OSError) or may_pass(error)):
            raise  # an error of the code; libraries of buckets have classes of their own for a failed network
        passing = may_pass(error) or isinstance(error, DownloadError | UploadError)
        told = without_passwords(f"remote {name}: {error}")
        raise (PassingError if passing else UserError)(told) from None  # the cause holds the address


def main() -> int:
    """The command line; returns the exit status."""
    name, stage = sys.argv[1:]
    try:
        print(f"{stage}: {'up to date or taken from' if restore(name, stage) else 'not in'} remote {name}", flush=True)
    except UserError as error:
        print(f"error: {stage}: {error}", file=sys.stderr)
        return PASSING_STATUS if may_pass(error) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
