"""Inputs and results of one stage, between a workspace and a DVC remote.

    python -m flows.machines.results ask REMOTE STAGE FILE     take the results, or write into FILE what a machine needs
    python -m flows.machines.results take REMOTE STAGE         take what a machine has sent, and write dvc.lock

A process of its own for each, because `dvc` locks a workspace by process. Objects are sent before the run-cache entry
that names them: a remote that fails half-way has no entry, so nothing half-sent looks whole. Of the run cache, which
has an entry for every stage that anybody ever ran, only the stage's own are copied.
"""

import argparse
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.machines.request import Request, committed, head, versions
from flows.running.remote import opened
from rarlhf.config.errors import PASSING_STATUS, PassingError, UserError, may_pass
from rarlhf.system.files import replaced

if TYPE_CHECKING:
    from dvc.output import Output
    from dvc.repo import Repo
    from dvc.stage import Stage
    from dvc_data.hashfile.hash_info import HashInfo

PARAMS = Path("params.yaml")


def ask(remote: str, name: str, force: bool) -> Request | None:
    """Takes a stage's results if the remote has them; else sends it the stage's inputs and returns the request."""
    with opened(remote) as repo:
        (stage,) = repo.stage.collect(name)
        if not force and _taken(repo, stage):
            return None
        inputs = list(_inputs(repo, stage))
        with repo.lock:
            for out in inputs:
                _send(repo, out.get_used_objs())  # none of an output outside DVC's cache
        text = PARAMS.read_text(encoding="utf-8")
        return Request(
            stage=name,
            commit=head(),
            versions=versions(),
            remote=remote,
            force=force,
            params=None if text == committed(str(PARAMS)) else text,
            files={out.def_path: Path(out.fs_path).read_text(encoding="utf-8") for out in inputs if not out.use_cache},
            locked=_locked(out for out in inputs if out.use_cache),
        )


def take(remote: str, name: str) -> None:
    """Puts a stage's results into the workspace and its entry into dvc.lock.

    Raises: UserError if the remote lacks them.
    """
    with opened(remote) as repo:
        (stage,) = repo.stage.collect(name)
        if not _taken(repo, stage):
            raise UserError(
                f"remote {remote} has no result of {name} for the inputs here: params.yaml, the code or an input was "
                "edited while a machine computed it; run again"
            )


def send(remote: str, name: str) -> int:
    """Sends the results of a stage that has just run, and last the entry that names them; returns how many files.

    Raises: PassingError if some could not be sent.
    """
    with opened(remote) as repo, repo.lock:
        (stage,) = repo.stage.collect(name)
        repo.stage_cache.save(stage)  # DVC itself leaves out stages with outputs outside its cache that are no metrics
        key = _key(stage)
        entries = [(key, path.name) for path in Path(repo.stage_cache.cache_dir, key[:2], key).iterdir()]
        sent = _send(repo, repo.stage_cache.get_used_objs(entries))  # outputs outside DVC's cache included
        _copy_entries(repo, key, to_remote=True)
        return sent


def _taken(repo: "Repo", stage: "Stage") -> bool:
    """Takes the stage's results from the remote and writes its entry in dvc.lock; False if they are not there."""
    from dvc.stage.cache import RunCacheNotFoundError

    with repo.lock:
        _copy_entries(repo, _key(stage), to_remote=False)
        try:
            repo.stage_cache.restore(stage, pull=True)
        except RunCacheNotFoundError:
            return False
    repo.commit(target=stage.addressing, force=True)  # never runs the stage, as `repro` might
    return True


def _key(stage: "Stage") -> str:
    """The run cache's key of a stage with its present inputs."""
    from dvc.stage.cache import _get_stage_hash

    present = stage.reload()  # the stage itself keeps the inputs of dvc.lock, by which DVC tells whether it has changed
    present.save_deps()
    return _get_stage_hash(present)


def _copy_entries(repo: "Repo", key: str, to_remote: bool) -> None:
    """Copies the run cache's entries of one key, over those that are there: a copy may have been cut short."""
    from dvc.fs import generic

    places = [repo.cache.legacy, repo.cloud.get_remote_odb(None, "run cache", hash_name="md5-dos2unix")]
    source, target = places if to_remote else reversed(places)
    here, there = (odb.fs.join(odb.path, "runs", key[:2], key) for odb in (source, target))
    for path in source.fs.find(here) if source.fs.exists(here) else []:
        target.makedirs(there)
        generic.copy(source.fs, path, target.fs, target.fs.join(there, source.fs.name(path)))


def _inputs(repo: "Repo", stage: "Stage") -> "Iterator[Output]":
    """Outputs of other stages that a stage reads, in whole or in part."""
    paths = [Path(dep.fs_path) for dep in stage.deps if dep.protocol == "local"]
    for upstream in sorted(repo.index.graph.successors(stage), key=lambda stage: stage.addressing):
        for out in upstream.outs:
            own = Path(out.fs_path)
            if any(own.is_relative_to(path) or path.is_relative_to(own) for path in paths):
                yield out


def _send(repo: "Repo", objects: "Mapping[Any, Iterable[HashInfo]]") -> int:
    """Sends objects to the remote, those that it lacks; returns how many.

    Raises: PassingError if some could not be sent.
    """
    results = [repo.cloud.push(some) for some in objects.values()]
    if failed := sum(len(result.failed) for result in results):
        raise PassingError(f"{failed} files could not be sent to remote {repo.config['core']['remote']}")
    return sum(len(result.transferred) for result in results)


def _locked(outs: "Iterable[Output]") -> dict[str, Any]:
    """What dvc.lock says of outputs, without what their stages depend on."""
    from dvc.stage.serialize import to_single_stage_lockfile

    entries: dict[str, Any] = {}
    for out in outs:
        whole = to_single_stage_lockfile(out.stage)
        entry = entries.setdefault(out.stage.addressing, {"cmd": whole["cmd"], "outs": []})
        entry["outs"] += [dict(told) for told in whole["outs"] if told["path"] == out.def_path]
    return entries


def main() -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser("python -m flows.machines.results")
    parser.add_argument("what", choices=["ask", "take"])
    parser.add_argument("remote")
    parser.add_argument("stage")
    parser.add_argument("file", nargs="?", type=Path)
    parser.add_argument("--force", action="store_true")
    options = parser.parse_args()
    try:
        if options.what == "take":
            take(options.remote, options.stage)
        elif (request := ask(options.remote, options.stage, options.force)) is not None:
            with replaced(options.file) as partial:
                partial.write_text(request.model_dump_json(), encoding="utf-8")
    except UserError as error:
        print(f"error: {options.stage}: {error}", file=sys.stderr)
        return PASSING_STATUS if may_pass(error) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
