import os
import shutil
import sys
from pathlib import Path

import pytest
from dvc.cli import main as dvc_main

from tests.flows.machines.clones import Clone, git

REPOSITORY = Path(__file__).parents[3]
# `first` runs where the run is; what reads section `runtime` runs on machines. `train@1` waits until it is let go.
DVC_YAML = """\
stages:
  first:
    cmd: mkdir -p data metrics && echo a > data/a.txt && echo 1 > metrics/m.json
    deps: [presets]
    outs:
      - data/a.txt
      - metrics/m.json: {cache: false}
  train:
    matrix:
      seed: [1, 2]
    cmd: >-
      mkdir -p models && touch ../here${item.seed}-$$ &&
      until test ${item.seed} = 2 || test -e ../go; do sleep 0.1; done;
      cat data/a.txt metrics/m.json code.txt > models/${item.seed}.txt
    deps: [data/a.txt, metrics/m.json, code.txt]
    params: [runtime]
    outs:
      - models/${item.seed}.txt
  last:
    cmd: mkdir -p metrics && cat models/* > metrics/last.txt
    deps: [models]
    params: [runtime.threads]
    outs:
      - metrics/last.txt: {cache: false}
"""
IGNORED = "/data\n/models\n/.prefect\n/mlflow.db*\n/.mlflow.lock\n/mlartifacts\n/.dvc/tmp\n"


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clone:
    """`clone(name)` is a new clone of a small pipeline's repository, with a DVC remote; the process enters it."""
    for name in ("DVC_ROOT", "DVC_STAGE", "MLFLOW_TRACKING_URI", "RARLHF_PIPELINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    origin = tmp_path / "origin"
    (origin / ".dvc").mkdir(parents=True)
    for name in (".dvc/config", ".dvc/.gitignore", "prefect.toml"):
        shutil.copy(REPOSITORY / name, origin / name)
    (origin / "presets").mkdir()
    for name in ("params.yaml", "presets/tiny.yaml"):
        shutil.copy(REPOSITORY / "presets" / "tiny.yaml", origin / name)
    for name, text in (("dvc.yaml", DVC_YAML), (".gitignore", IGNORED), ("code.txt", "c\n")):
        (origin / name).write_text(text)
    monkeypatch.chdir(origin)
    git("init", "-q")
    git("add", "-A")
    git("commit", "-qm", "all")

    def made(name: str) -> Path:
        folder = tmp_path / name
        git("clone", "-q", str(origin), str(folder))
        monkeypatch.chdir(folder)
        assert dvc_main(["remote", "add", "-q", "--local", "store", str(tmp_path / "store")]) == 0
        return folder

    return made
