import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import dvc  # noqa: F401  # its log keeps the output of the moment of import; that of a test would be closed later
import pytest

REPOSITORY = Path(__file__).parents[2]
DVC_YAML = """\
stages:
  first:
    cmd: mkdir -p data && echo a > data/a.txt
    deps: [presets]
    outs: [data/a.txt]
  twin:
    matrix:
      seed: [1, 2]
    cmd: cp data/a.txt data/b${item.seed}.txt && test ${item.seed} = 1
    deps: [data/a.txt]
    outs: ["data/b${item.seed}.txt"]
  good:
    cmd: >-
      cp data/b1.txt data/good.txt;
      for i in $(seq 300); do [ -z "$RARLHF_PIPELINE" ] || [ -e "$RARLHF_PIPELINE/run" ] && break; sleep 0.1; done;
      echo "parent=$(cat $RARLHF_PIPELINE/run)"
    deps: [data/b1.txt]
    outs: [data/good.txt]
  last:
    cmd: cp data/b2.txt data/last.txt
    deps: [data/b2.txt]
    outs: [data/last.txt]
"""


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory, prefect_database: Path) -> Path:
    """A git and DVC repository with a pipeline in which the run `twin@2` fails, and Prefect's database."""
    folder = tmp_path_factory.mktemp("toy")
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    (folder / ".dvc").mkdir()
    for name in (".dvc/config", ".dvc/.gitignore", ".gitignore", "prefect.toml"):
        shutil.copy(REPOSITORY / name, folder / name)
    (folder / "presets").mkdir()
    for name in ("params.yaml", "presets/tiny.yaml"):
        shutil.copy(REPOSITORY / "presets" / "tiny.yaml", folder / name)
    (folder / "dvc.yaml").write_text(DVC_YAML)
    (folder / ".prefect").mkdir()
    shutil.copy(prefect_database, folder / ".prefect")
    return folder


@pytest.fixture
def toy(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, _tables_at_once: None) -> Iterator[Path]:
    """A copy of the template; the process stands in it."""
    folder = tmp_path / "toy"
    shutil.copytree(template, folder)
    monkeypatch.chdir(folder)
    for name in ("DVC_ROOT", "MLFLOW_TRACKING_URI", "RARLHF_PIPELINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))  # for the processes that a test starts here
    saved = dict(os.environ)
    yield folder
    os.environ.clear()
    os.environ.update(saved)
