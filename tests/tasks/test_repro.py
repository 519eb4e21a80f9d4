"""`python -m tasks.repro` in a small repository whose stage ends as a file says."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

import tasks.repro

if TYPE_CHECKING:
    from mlflow.entities import Run

pytestmark = pytest.mark.slow
REPOSITORY = Path(__file__).parents[2]
TOY = """\
import os, time
from pathlib import Path
from rarlhf.config.errors import UserError
from tasks.running.stage import Run, stage

@stage
def toy(run: Run, seed: int, out: Path) -> None:
    word = Path(f"in{seed}.txt").read_text()
    with run.output(out) as file:
        file.write_text(word)
        run.log(f"{word} pid {os.getpid()}")
        if word == "fail":
            raise UserError("as told")
        if word == "wait":
            time.sleep(120)

toy()
"""
DVC_YAML = """\
stages:
  toy:
    matrix:
      seed: ${seeds}
    cmd: python toy.py --seed ${item.seed} --out out/${item.seed}.txt
    deps: ["in${item.seed}.txt"]
    outs: ["out/${item.seed}.txt"]
"""


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    (tmp_path / ".dvc").mkdir()
    shutil.copy(REPOSITORY / ".dvc" / "config", tmp_path / ".dvc" / "config")
    text = (REPOSITORY / "presets" / "tiny.yaml").read_text().replace("seeds: [1, 2, 3]", "seeds: [1, 2]")
    for name, content in (("params.yaml", text), ("dvc.yaml", DVC_YAML), ("toy.py", TOY)):
        (tmp_path / name).write_text(content)
    for seed in (1, 2):
        (tmp_path / f"in{seed}.txt").write_text("a")
    monkeypatch.chdir(tmp_path)
    for name in ("DVC_ROOT", "DVC_STAGE", "MLFLOW_TRACKING_URI", "RARLHF_PIPELINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


@contextmanager
def started() -> Iterator[subprocess.Popen[str]]:
    """The command, its lines read as they come; killed at the end if it still runs."""
    command = [sys.executable, "-m", "tasks.repro"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        yield process


def repro() -> tuple[int, str]:
    with started() as process:
        shown, _ = process.communicate(timeout=240)
    return process.returncode, shown


def wait_for_stage(process: subprocess.Popen[str]) -> int:
    """Process number of the stage that waits."""
    assert process.stdout is not None
    line = next(line for line in process.stdout if line.startswith("wait pid "))
    return int(line.split()[2])


def runs(root: Path) -> "list[Run]":
    """Newest first."""
    from mlflow.tracking.client import MlflowClient

    client = MlflowClient(f"sqlite:///{root}/mlflow.db")
    experiment = client.get_experiment_by_name("rarlhf")
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id]))


def last_pipeline(root: Path) -> tuple[str, dict[str, str]]:
    """Its status, and the state of each stage."""
    run = next(run for run in runs(root) if str(run.info.run_name).startswith("tiny pipeline "))
    stages = Path(run.info.artifact_uri.removeprefix("file://"), "stages.json")
    return run.info.status, {row[0]: row[1] for row in json.loads(stages.read_text())["data"]}


def gone(pid: int) -> bool:
    """Whether a process has ended; where nobody asks how, its entry stays."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_every_end_of_dvc_repro_is_told(toy: Path) -> None:
    status, shown = repro()
    assert status == 0 and shown.count("Running stage") == 2, shown
    assert last_pipeline(toy) == ("FINISHED", {"toy@1": "Completed", "toy@2": "Completed"})
    Path("in1.txt").write_text("fail")
    status, shown = repro()
    assert status == 255 and "error: toy@1: as told" in shown
    assert last_pipeline(toy) == ("FAILED", {"toy@1": "Failed", "toy@2": "Cached"})
    kinds = [run.data.tags["stage"] for run in runs(toy)]
    assert sorted(kinds) == ["pipeline"] * 2 + ["toy"] * 3  # what was up to date has no run
    assert shown.splitlines()[-1].startswith("runs in MLflow (`make ui` serves the page): http://127.0.0.1:5000/#/")


def test_a_killed_stage_and_a_terminated_pipeline(toy: Path) -> None:
    Path("in2.txt").write_text("wait")
    with started() as process:
        os.kill(wait_for_stage(process), signal.SIGKILL)
        process.communicate(timeout=240)
    assert process.returncode == 255
    assert last_pipeline(toy) == ("FAILED", {"toy@1": "Completed", "toy@2": "Killed"})
    with started() as process:
        stage = wait_for_stage(process)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=240)
    assert process.returncode == 255 and gone(stage)
    assert last_pipeline(toy) == ("KILLED", {"toy@1": "Cached", "toy@2": "Killed"})
    with started() as process:
        stage = wait_for_stage(process)
        process.kill()  # of the pipeline alone: DVC and the stage go on, and the next start closes the run
        os.kill(stage, signal.SIGTERM)
        process.communicate(timeout=240)  # until DVC has ended
    Path("in2.txt").write_text("b")
    assert repro()[0] == 0
    assert {run.info.status for run in runs(toy)} <= {"FINISHED", "FAILED", "KILLED"}


@pytest.mark.parametrize(("old", "new"), [("seeds: [1, 2]", "seeds: 1"), ("kl:", "<<<<<<< HEAD\nkl:")])
def test_bad_params_are_told_before_dvc_starts(
    old: str, new: str, toy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = Path("params.yaml").read_text()
    assert old in text
    Path("params.yaml").write_text(text.replace(old, new, 1))
    monkeypatch.setattr(subprocess, "Popen", None)  # nothing is started
    assert tasks.repro.main() == 1
    assert capsys.readouterr().err.startswith("error: params.yaml")


def test_a_bad_pipeline_is_dvcs_to_tell(toy: Path) -> None:
    Path("dvc.yaml").write_text("stages: [1]\n")
    status, shown = repro()
    assert status == 255 and "dvc.yaml" in shown and "Traceback" not in shown
