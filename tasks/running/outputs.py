"""Outputs that appear whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rarlhf.system.launch import first_process

PARTIAL = Path(".partial")


class Outputs:
    """Files and folders written in `.partial/` and moved to their places together, by `commit`.

    A target's old content stays until then, so that a stage that fails leaves everything as it was.
    """

    def __init__(self) -> None:
        # The other processes' files are never moved into place; they must not overwrite the first one's.
        self._folder = PARTIAL if first_process() else Path(tempfile.mkdtemp())
        self._pending: dict[Path, Path] = {}

    @contextmanager
    def write(self, target: Path) -> Iterator[Path]:
        """Yields a place to write `target`: an empty folder or, where the target has a suffix, the name of a new file.

        What a killed process left there is deleted first.
        """
        partial = self._folder / str(target).replace("/", "__")
        remove(partial)
        (self._folder if target.suffix else partial).mkdir(parents=True, exist_ok=True)
        self._pending[target] = partial
        yield partial

    def commit(self) -> list[Path]:
        """Moves everything that was written to its target; returns the targets. Only the first process does so."""
        targets = list(self._pending) if first_process() else []
        for target in targets:
            _replace(self._pending[target], target)
        self.discard()
        return targets

    def discard(self) -> None:
        """Deletes what was written and not committed."""
        for partial in self._pending.values():
            remove(partial)
        self._pending.clear()
        with suppress(OSError):  # another stage's outputs may be in it
            self._folder.rmdir()


def remove(path: Path) -> None:
    """Deletes a file, a link or a folder with all it holds; a path that does not exist is fine."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _replace(partial: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.is_dir():
        os.replace(partial, target)
        return
    old = partial.with_name(f"{partial.name}.old")  # a folder cannot be replaced in one step
    remove(old)
    os.replace(target, old)
    os.replace(partial, target)
    remove(old)
