"""Scores by a user's Python function, named `python:package.module:function`.

The function takes a list of texts and returns a list of as many floats, higher being better. Its module
is an installed package, or is in the folder that the command runs in (for stages, the repository's root).
"""

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.machinery import ModuleSpec
from importlib.metadata import packages_distributions, version
from math import isfinite
from numbers import Real
from pathlib import Path
from typing import Any

from rarlhf.config.errors import UserError
from rarlhf.config.function_names import function_name
from rarlhf.system.files import files_hash

INSTALLED = ("site-packages", "dist-packages")  # folders of installed packages, which change only with their version


class PythonScorer:
    """Calls a function on at most `batch_size` texts at a time and accepts nothing but numbers."""

    def __init__(self, source: str, batch_size: int) -> None:
        self.source = source
        self.batch_size = batch_size
        self.function = load_function(source)

    def __call__(self, texts: Sequence[str]) -> list[float]:
        """Scores of the texts, in their order.

        Raises: UserError if the function raises, or returns anything but one finite number per text.
        """
        scores: list[float] = []
        for start in range(0, len(texts), self.batch_size):
            scores += self._scores(list(texts[start : start + self.batch_size]))
        return scores

    def _scores(self, texts: list[str]) -> list[float]:
        try:
            returned = self.function(list(texts))
        except Exception as error:
            raise UserError(f"{self.source} raised {_described(error)}") from error
        values = returned.tolist() if hasattr(returned, "tolist") else returned  # an array or a tensor
        if not isinstance(values, list | tuple):
            raise UserError(f"{self.source} returned {_short(values)}, not a list of floats")
        if len(values) != len(texts):
            raise UserError(f"{self.source} returned {len(values)} values for {len(texts)} texts: one each is needed")
        return [self._number(value, text) for value, text in zip(values, texts, strict=True)]

    def _number(self, value: object, text: str) -> float:
        if not isinstance(value, Real) or not isfinite(value):
            raise UserError(f"{self.source} gave {_short(value)} for the text {text[:60]!r}: a finite number is needed")
        return float(value)


def load_function(source: str) -> Callable[[list[str]], Any]:
    """Imports the function.

    Raises: UserError if there is no such module or function, or importing it fails.
    """
    module_name, name = _parts(source)
    _spec(source)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise UserError(f"{source}: importing {module_name} raised {_described(error)}") from error
    function = getattr(module, name, None)
    if not callable(function):
        reason = "has no" if function is None else f"holds {_short(function)}, not a function, as"
        raise UserError(f"{source}: {module.__file__} {reason} {name}")
    return function


def code_fingerprint(source: str) -> dict[str, Any]:
    """A fingerprint of the function's code: the SHA-256 of its source, and the version of its package.

    The source is all `*.py` of the outermost package around the module, or the module's one file; for an installed
    package it is the module's file, and the version covers the rest.

    Returns: a JSON object without machine paths.
    Raises: UserError if there is no such module.
    """
    module_name, _ = _parts(source)
    folder, files = _code(module_name, Path(_spec(source).origin or ""))
    distributions = _distributions().get(module_name.partition(".")[0], [])
    number = version(distributions[0]) if distributions else None
    return {"function": source, "sha256": files_hash(folder, files), "version": number}


@cache
def _distributions() -> Mapping[str, list[str]]:
    """The installed packages of each top-level module; to look through them all takes a second or more."""
    return packages_distributions()


def _code(module_name: str, file: Path) -> tuple[Path, list[Path]]:
    """A folder, and the files in it that are the module's code."""
    depth = module_name.count(".") + (file.name == "__init__.py")  # of the file, below the outermost package's place
    if depth == 0 or set(INSTALLED) & set(file.parts):
        return file.parent, [file]
    package = file.parents[depth - 1]
    return package, sorted(package.rglob("*.py"))


def _parts(source: str) -> tuple[str, str]:
    parts = function_name(source)
    if parts is None:
        raise UserError(f"{source!r} names no function: write python:package.module:function")
    return parts


def _spec(source: str) -> ModuleSpec:
    module_name, _ = _parts(source)
    here = str(Path.cwd())
    if here not in sys.path:  # only `python -m` looks in the current folder by itself
        sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        spec = importlib.util.find_spec(module_name)
    except ModuleNotFoundError:  # of a package above it
        spec = None
    except Exception as error:
        raise UserError(f"{source}: importing its package raised {_described(error)}") from error
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        raise UserError(
            f"{source}: there is no module {module_name}, neither in {here} nor installed; "
            f"put {module_name.replace('.', '/')}.py there (a run in a copy of the repository needs it in git)"
        )
    return spec


def _described(error: Exception) -> str:
    """The error's class and first line, and its place in the user's code."""
    first = str(error).strip().split("\n")[0]
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename]
    where = f" ({Path(frames[-1].filename).name} line {frames[-1].lineno})" if frames[1:] else ""
    return f"{type(error).__name__}: {first}{where}" if first else f"{type(error).__name__}{where}"


def _short(value: object) -> str:
    text = f"{value!r} ({type(value).__name__})"
    return text if len(text) < 80 else f"a {type(value).__name__}"
