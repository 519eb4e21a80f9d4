"""`tests/warm.py`: a command that forks sees, prints and ends as one that the real Python runs."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.warm import warm_python

TOY = """\
import os, random, signal, sys
import numpy

if sys.argv[1] == "die":
    os.kill(os.getpid(), signal.SIGTERM)
if sys.argv[1] == "raise":
    raise KeyError("as told")
import json
import beside

print(json.dumps({
    "words": sys.argv[1:], "file": sys.argv[0], "original": sys.orig_argv[1:], "name": __name__, "folder": os.getcwd(),
    "own": os.environ["OWN"], "only": "HOME" in os.environ, "first": sys.path[:2], "beside": beside.VALUE,
    "read": sys.stdin.read(),
}))
print(os.getpid(), random.random(), numpy.random.random(), "wave" in sys.modules, file=sys.stderr)
sys.exit(3)
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A value of PATH whose `python3` forks."""
    with warm_python(os.environ, ["numpy.random", "wave"]) as folder:
        yield f"{folder}{os.pathsep}{os.environ['PATH']}"


def run(python: str, folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    environment = {"PATH": python, "OWN": "x", "PYTHONPATH": "/elsewhere"}
    command = ["python3", "-m", f"toy_{folder.parent.name.replace('-', '_')}", *words]
    return subprocess.run(command, cwd=folder, env=environment, input="in", capture_output=True, text=True, check=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "place"
    place.mkdir()
    (place / f"toy_{tmp_path.name.replace('-', '_')}.py").write_text(TOY)
    (place / "beside.py").write_text(f"VALUE = {tmp_path.name!r}")
    return place


def test_a_fork_is_like_a_process_of_its_own(python: str, folder: Path) -> None:
    first, second, third = (run(python, folder, "a b", "c") for _ in range(3))
    assert first.returncode == second.returncode == third.returncode == 3
    assert json.loads(first.stdout)["folder"] == str(folder)
    assert second.stdout == third.stdout == first.stdout
    ids, own, numpys, imported = zip(*(done.stderr.split() for done in (first, second, third)), strict=True)
    assert len(set(ids)) == len(set(own)) == len(set(numpys)) == 3
    assert imported == ("False", "True", "True")  # the first ran under the real Python


def test_errors_and_signals_are_told(python: str, folder: Path) -> None:
    for _ in range(2):
        failed = run(python, folder, "raise")
        assert failed.returncode == 1 and failed.stderr.endswith("KeyError: 'as told'\n")
    assert [run(python, folder, "die").returncode for _ in range(2)] == [-15, -15]


def test_what_is_no_module_runs_under_the_real_python(python: str) -> None:
    done = subprocess.run(["python3", "-c", "print(1)"], env={"PATH": python}, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (0, b"1\n")
