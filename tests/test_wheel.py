"""The wheel, installed alone, is enough for the library: nothing of the pipeline is needed.

The environment has the packages that the wheel names and what those need, as links to this one's, and so no network.
"""

import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Sequence
from email import message_from_bytes
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from ruamel.yaml import YAML

pytestmark = pytest.mark.slow
REPOSITORY = Path(__file__).parents[1]
SOURCE = ("pyproject.toml", "README.md", "LICENSE")
PIPELINE = ("dvc", "prefect", "mlflow", "fastapi", "starlette", "uvicorn", "tasks", "flows")
JUDGES = ("rarlhf.rewards.vader", "rarlhf.rewards.profanity")  # they need the packages of the extra `judges`
SHORT = {
    "ppo.iterations": 3,
    "risk.warmup": 1,
    "risk.rho": 1.0,
    "ppo.max_new_tokens": 5,
    "ppo.batch_size": 6,
    "ppo.mini_batch_size": 3,
    "ppo.micro_batch_size": 3,
    "runtime.threads": 1,
}
MODEL = """
from pathlib import Path
from rarlhf.config.load import load_params
from rarlhf.models.loading import save_model
from rarlhf.training.base import new_model, train_tokenizer

scratch = load_params().model.scratch.model_copy(update={"vocab_size": 280, "context": 32, "width": 16, "heads": 2})
tokenizer = train_tokenizer(["the film was good .", "the old plot , we liked the good end ."], scratch)
save_model(new_model(tokenizer, scratch), tokenizer, Path("models/sft"))
"""


def call(folder: Path, *command: str) -> str:
    """What a command prints that runs in `folder`, away from this repository."""
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, because the build leaves its own folders there."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in SOURCE:
        shutil.copy(REPOSITORY / name, folder)
    for name in ("rarlhf", "tasks", "flows"):
        shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    words = ("wheel", ".", "--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir", "dist")
    call(folder, sys.executable, "-m", "pip", *words)
    (built,) = (folder / "dist").iterdir()
    return built


def needed(wheel: Path) -> dict[str, Distribution]:
    """The packages that the wheel names and, again and again, what those need."""
    with zipfile.ZipFile(wheel) as archive:
        (path,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        asked = message_from_bytes(archive.read(path)).get_all("Requires-Dist") or []
    found: dict[str, Distribution] = {}
    while asked:
        requirement = Requirement(asked.pop())
        name = canonicalize_name(requirement.name)
        wanted = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if wanted and name not in found:
            found[name] = distribution(name)
            asked += found[name].requires or []
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of commands of an environment that has the wheel and what it needs."""
    folder = tmp_path_factory.mktemp("fresh")
    venv.create(folder, symlinks=True)
    words = ("install", "--no-deps", "--no-index", "--quiet", "--disable-pip-version-check", str(wheel))
    call(folder, sys.executable, "-m", "pip", "--python", str(folder), *words)
    (site,) = folder.glob("lib/python*/site-packages")
    for package in needed(wheel).values():
        for name in {file.parts[0] for file in package.files or []} - {"..", "__pycache__"}:
            place = site / name
            if not place.exists():
                place.symlink_to(Path(str(package.locate_file(name))))
    return folder / "bin"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A user's folder, with a params.yaml that asks for little."""
    yaml = YAML()
    values = yaml.load((REPOSITORY / "presets" / "tiny.yaml").read_text(encoding="utf-8"))
    for key, value in SHORT.items():
        section, name = key.split(".")
        values[section][name] = value
    yaml.dump(values, tmp_path / "params.yaml")
    return tmp_path


def modules(names: Sequence[str]) -> set[str]:
    return {name.partition("/")[0] for name in names if name.endswith((".py", ".j2"))}


def test_the_wheel_holds_the_library_alone_and_all_of_it(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert modules(names) == {"rarlhf"}
    tracked = {str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / "rarlhf").rglob("*") if path.is_file()}
    assert {name for name in names if name.startswith("rarlhf/")} == {
        name for name in tracked if "__pycache__" not in name
    }


def test_nothing_of_the_pipeline_is_there(installed: Path, tmp_path: Path) -> None:
    """Else the tests below would show nothing."""
    code = "import sys, importlib.util as u; print(*[name for name in sys.argv[1:] if u.find_spec(name)])"
    assert call(tmp_path, str(installed / "python"), "-c", code, "rarlhf", *PIPELINE).split() == ["rarlhf"]
    where = call(tmp_path, str(installed / "python"), "-c", "import rarlhf; print(rarlhf.__file__)")
    assert Path(where.strip()).is_relative_to(installed.parent)


def test_every_module_of_the_library_can_be_imported(installed: Path, tmp_path: Path) -> None:
    names = [
        ".".join(path.relative_to(REPOSITORY).with_suffix("").parts) for path in (REPOSITORY / "rarlhf").rglob("*.py")
    ]
    names = [name.removesuffix(".__init__") for name in names]
    code = "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)"
    call(tmp_path, str(installed / "python"), "-c", code, *[name for name in names if name not in JUDGES])
    refused = (
        "import importlib, sys\ntry: importlib.import_module(sys.argv[1])\nexcept ImportError as error: print(error)"
    )
    for name in JUDGES:
        assert "pip install -e '.[judges]'" in call(tmp_path, str(installed / "python"), "-c", refused, name)


def test_the_loop_and_the_command_line_need_no_pipeline(installed: Path, project: Path) -> None:
    page = (REPOSITORY / "docs" / "loop.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    lines = call(project, str(installed / "python"), "-c", MODEL + block).splitlines()
    assert [line.split()[0] for line in lines] == ["1", "2", "3"]
    words = ("generate", "my-model", "the film", "--samples", "2", "--max-new-tokens", "4")
    printed = call(project, str(installed / "rarlhf"), *words).splitlines()
    assert len(printed) == 2 and all(line.startswith("the film") for line in printed)
