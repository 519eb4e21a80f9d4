"""A stage's command under a Python that lacks the packages, as where `.venv` is not activated."""

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[3]
TOY = "import sys, os; print(os.path.samefile(sys.prefix, os.environ['OWN']), sys.argv[1:], __file__)"


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python without packages."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=False)
    return folder / "bin" / "python3"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A repository with one command in `tasks` and one in `flows`, which import nothing."""
    for package in ("tasks", "flows"):
        (tmp_path / package).mkdir()
        shutil.copy(REPOSITORY / package / "__init__.py", tmp_path / package)
        (tmp_path / package / "toy.py").write_text(TOY)
    (tmp_path / "tasks" / "running").mkdir()
    for name in ("__init__.py", "interpreter.py"):
        shutil.copy(REPOSITORY / "tasks" / "running" / name, tmp_path / "tasks" / "running")
    return tmp_path


def run(python: Path, folder: Path, module: str, **environment: Path) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "DVC_ROOT")}
    own = {"OWN": sys.prefix} | {name: str(value) for name, value in environment.items()}
    command = [python, "-m", module, "--out", "a b"]
    return subprocess.run(command, cwd=folder, env=kept | own, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("module", ["tasks.toy", "flows.toy"])
def test_the_environment_beside_the_code_is_taken(module: str, bare: Path, copy: Path) -> None:
    (copy / ".venv").symlink_to(sys.prefix)
    done = run(bare, copy, module)
    file = copy / f"{module.replace('.', '/')}.py"
    assert (done.stdout, done.stderr) == (f"True ['--out', 'a b'] {file}\n", "")


def test_a_copy_of_the_repository_takes_that_of_the_main_one(bare: Path, copy: Path, tmp_path: Path) -> None:
    main = tmp_path / "main"
    main.mkdir()
    (main / ".venv").symlink_to(sys.prefix)
    done = run(bare, copy, "tasks.toy", DVC_ROOT=main)
    assert (done.stdout, done.stderr) == (f"True ['--out', 'a b'] {copy / 'tasks' / 'toy.py'}\n", "")


def test_without_one_a_line_says_what_to_do(bare: Path, copy: Path) -> None:
    (copy / ".venv").symlink_to(bare.parents[1])  # an environment whose set-up did not end is no help
    done = run(bare, copy, "tasks.toy")
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith(f"error: {bare} lacks packages of this project: ruamel, pydantic, ")
    assert "make repro" in done.stderr and "Traceback" not in done.stderr


def test_a_python_with_the_packages_is_kept(copy: Path) -> None:
    (copy / ".venv").symlink_to(copy / "nowhere")
    assert run(Path(sys.executable), copy, "tasks.toy").stdout.startswith("True ")
