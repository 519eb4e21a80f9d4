"""`python -m flows.repro` in a small repository whose stages end as files say."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

import flows.repro

if TYPE_CHECKING:
    from mlflow.entities import Run

# A busy machine took 306 s for a test that takes some runs.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
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
        if word == "fail":
            raise UserError("as told")
        if word == "slow":
            time.sleep(3)
        if word == "meet":
            Path(f"here{seed}").touch()
            while not Path(f"here{3 - seed}").exists():
                time.sleep(0.05)
        if word == "once" and not Path("killed").exists():
            Path("killed").touch()
            os.kill(os.getpid(), 9)
        if word == "wait":
            try:
                run.log(f"wait pid {os.getpid()}")
                time.sleep(120)
            finally:
                Path(f"saved{seed}").touch()

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
  last:
    cmd: cp out/1.txt last.txt
    deps: [out/1.txt]
    outs: [last.txt]
"""


@pytest.fixture
def toy(tmp_path: Path, mlflow_store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    (tmp_path / ".dvc").mkdir()
    shutil.copy(REPOSITORY / ".dvc" / "config", tmp_path / ".dvc" / "config")
    text = (REPOSITORY / "presets" / "tiny.yaml").read_text().replace("seeds: [1, 2, 3]", "seeds: [1, 2]")
    for name, content in (("params.yaml", text), ("dvc.yaml", DVC_YAML), ("toy.py", TOY)):
        (tmp_path / name).write_text(content)
    for seed in (1, 2):
        (tmp_path / f"in{seed}.txt").write_text("a")
    shutil.copy(mlflow_store, tmp_path / "mlflow.db")
    monkeypatch.chdir(tmp_path)
    for name in ("DVC_ROOT", "DVC_STAGE", "MLFLOW_TRACKING_URI", "RARLHF_PIPELINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


@contextmanager
def started(*options: str) -> Iterator[subprocess.Popen[str]]:
    """The command, its lines read as they come; killed at the end if it still runs."""
    command = [sys.executable, "-m", "flows.repro", "--parallel", "2", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def repro(*options: str) -> tuple[int, str]:
    with started(*options) as process:
        shown, _ = process.communicate(timeout=240)
    return process.returncode, shown


def wait_for_stages(process: subprocess.Popen[str], number: int = 1) -> list[int]:
    """Process numbers of the stages that wait."""
    assert process.stdout is not None
    lines = (line for line in process.stdout if "wait pid " in line)
    return [int(next(lines).split()[-1]) for _ in range(number)]


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


def test_what_a_run_says_and_records(toy: Path) -> None:
    status, shown = repro()
    assert status == 0 and shown.count(": started") == 3, shown
    assert "Running stage" not in shown  # DVC's own words
    done = {"toy@1": "Completed", "toy@2": "Completed", "last": "Completed"}
    assert last_pipeline(toy) == ("FINISHED", done)
    assert "all 3 stages are up to date; 3 of them were not" in shown
    Path("in1.txt").write_text("fail")
    status, shown = repro()
    *_, left, error, link = shown.splitlines()
    assert status == 255 and error == "error: toy@1: as told"
    assert left == "not run, because they need what failed: last"
    assert link.startswith("runs in MLflow (`make ui` serves the page): http://127.0.0.1:5000/#/")
    assert last_pipeline(toy) == ("FAILED", {"toy@1": "Failed", "toy@2": "Cached", "last": "NotRun"})
    kinds = [run.data.tags["stage"] for run in runs(toy)]
    assert sorted(kinds) == ["pipeline"] * 2 + ["toy"] * 3  # what was up to date has no run
    Path("in1.txt").write_text("a")
    status, shown = repro()
    assert status == 0 and "toy@1: up to date (" in shown, shown  # DVC had its output in the cache
    status, shown = repro()
    assert status == 0 and shown.splitlines()[0] == "all 3 stages are up to date"
    assert last_pipeline(toy) == ("FINISHED", dict.fromkeys(done, "Cached"))


def test_two_stages_run_side_by_side(toy: Path) -> None:
    """Each waits for the other, so neither would end alone."""
    for seed in (1, 2):
        Path(f"in{seed}.txt").write_text("meet")
    status, shown = repro()
    assert status == 0, shown


def test_side_by_side_leaves_what_one_after_another_leaves(toy: Path) -> None:
    Path("in1.txt").write_text("slow")  # ends after toy@2, and stands before it in dvc.lock
    left = []
    for command in (["flows.repro", "--parallel", "2"], ["flows.repro", "--parallel", "1"], ["dvc", "repro", "-q"]):
        subprocess.run([sys.executable, "-m", *command], check=True, timeout=240)
        outputs = [path.read_bytes() for path in (Path("out/1.txt"), Path("out/2.txt"), Path("last.txt"))]
        left.append((Path("dvc.lock").read_bytes(), outputs))
        for path in ("dvc.lock", "out", "last.txt", ".dvc/cache"):
            subprocess.run(["rm", "-r", path], check=True)
    assert left[0] == left[1] == left[2]


def test_a_failure_leaves_what_does_not_need_it(toy: Path) -> None:
    Path("in1.txt").write_text("fail")
    Path("in2.txt").write_text("slow")
    status, shown = repro()
    assert status == 255 and shown.splitlines()[-2] == "error: toy@1: as told"
    assert Path("out/2.txt").read_text() == "slow" and not Path("out/1.txt").exists()
    assert last_pipeline(toy) == ("FAILED", {"toy@1": "Failed", "toy@2": "Completed", "last": "NotRun"})


def test_a_killed_stage_is_tried_again_once(toy: Path) -> None:
    Path("in2.txt").write_text("once")
    status, shown = repro()
    assert status == 0 and "tried again in 5 s, because this may pass: toy@2: ERROR: failed to" in shown, shown
    Path("in2.txt").write_text("wait")
    with started() as process:
        for _ in range(2):
            (stage,) = wait_for_stages(process)
            os.kill(stage, signal.SIGKILL)
        process.communicate(timeout=240)
    assert process.returncode == 255
    assert last_pipeline(toy) == ("FAILED", {"toy@1": "Cached", "toy@2": "Killed", "last": "Cached"})


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_makes_all_stages_save_and_end(number: signal.Signals, toy: Path) -> None:
    for seed in (1, 2):
        Path(f"in{seed}.txt").write_text("wait")
    with started() as process:
        stages = wait_for_stages(process, 2)
        process.send_signal(number)
        shown, _ = process.communicate(timeout=240)
    assert process.returncode == 255 and all(map(gone, stages))
    assert Path("saved1").exists() and Path("saved2").exists()
    assert shown.splitlines()[-1] == "error: stopped; the finished stages are kept, and the same command runs the rest"
    assert last_pipeline(toy) == ("KILLED", {"toy@1": "Killed", "toy@2": "Killed", "last": "NotRun"})


def test_a_killed_run_leaves_no_stage_and_is_closed_by_the_next(toy: Path) -> None:
    for seed in (1, 2):
        Path(f"in{seed}.txt").write_text("wait")
    with started() as process:
        stages = wait_for_stages(process, 2)
        process.kill()
    for _ in range(600):
        if all(map(gone, stages)):
            break
        time.sleep(0.1)
    assert all(map(gone, stages)) and Path("saved1").exists() and Path("saved2").exists()
    for seed in (1, 2):
        Path(f"in{seed}.txt").write_text("b")
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
    monkeypatch.setattr(sys, "argv", ["repro"])
    assert flows.repro.main() == 1
    assert capsys.readouterr().err.startswith("error: params.yaml")


def test_a_bad_pipeline_and_bad_targets_are_said(toy: Path) -> None:
    status, shown = repro("nosuch")
    assert status == 255 and shown.startswith("error: dvc.yaml has no stage nosuch; it has last, toy@1, toy@2\n")
    Path("dvc.yaml").write_text("stages: [1]\n")
    status, shown = repro()
    assert status == 255 and "dvc.yaml" in shown and "Traceback" not in shown
    assert repro("--parallel", "0")[0] == 2
