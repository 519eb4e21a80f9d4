import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

import tasks.running.stage
from rarlhf.config.errors import PassingError, UserError
from rarlhf.config.params import Params
from rarlhf.system.signals import HeldSignals
from tasks.inputs import read_inputs
from tasks.preset import set_value
from tasks.running.stage import ENVIRONMENT, OLD_CHECKPOINTS, Run, run_stage, stage

ARGV = ["--seed", "2", "--source", "in.txt", "--out", "out.txt"]
Body = Callable[[Run, Path], None]


class FakeTracker:
    """Keeps what a stage tells it."""

    def __init__(self) -> None:
        self.numbers: list[tuple[int, Mapping[str, float]]] = []
        self.status = ""

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        self.numbers.append((step, values))

    def close(self, status: str) -> None:
        self.status = status


@pytest.fixture
def tracker(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> FakeTracker:
    fake = FakeTracker()
    monkeypatch.setattr(tasks.running.stage, "StageTracker", lambda record, root: fake)
    Path("out.txt").write_text("old")
    return fake


def run_toy(body: Body, argv: list[str] = ARGV) -> int:
    """Runs the stage `toy`, which writes what it read and then does `body`; returns the exit status."""

    def toy(run: Run, seed: int, source: Path, out: Path) -> None:
        """A toy."""
        with run.output(out) as file:
            file.write_text(f"{seed} {source.read_text()}")
            body(run, out)

    return run_stage(toy, argv)


def fail_with(error: BaseException) -> Body:
    def body(_run: Run, _out: Path) -> None:
        raise error

    return body


def test_a_stage_reads_its_arguments_and_writes_its_output(tracker: FakeTracker) -> None:
    def body(run: Run, out: Path) -> None:
        run.log(f"hash {run.inputs_hash}")
        run.recorder.record(3, {"loss": 0.5})
        assert out.read_text() == "old"

    assert run_toy(body) == 0
    assert Path("out.txt").read_text() == "2 in\n"
    assert tracker.numbers == [(3, {"loss": 0.5})]
    assert tracker.status == "FINISHED"


def test_the_decorated_stage_takes_the_command_line(tracker: FakeTracker, monkeypatch: pytest.MonkeyPatch) -> None:
    @stage
    def toy(run: Run, seed: int, texts: list[Path], word: str) -> None:
        assert (run.name, seed, texts, word) == ("toy@1", 1, [Path("a"), Path("b")], "x")

    monkeypatch.setattr(sys, "argv", ["toy", "--seed", "1", "--texts", "a", "b", "--word", "x"])
    with pytest.raises(SystemExit) as end:
        toy()
    assert end.value.code == 0


@pytest.mark.parametrize("argv", [[], [*ARGV, "--more", "1"], ["--seed", "one", *ARGV[2:]]])
def test_wrong_arguments_end_with_2(argv: list[str], tracker: FakeTracker) -> None:
    with pytest.raises(SystemExit) as end:
        run_toy(fail_with(AssertionError()), argv)
    assert end.value.code == 2


@pytest.mark.parametrize(
    ("error", "code", "status", "line"),
    [
        (UserError("no such thing"), 1, "FAILED", "error: toy@2: no such thing\n"),
        (UserError("your code raised \x1b[2J\u202e"), 1, "FAILED", "error: toy@2: your code raised \\x1b[2J\\u202e\n"),
        (KeyboardInterrupt(), 130, "KILLED", "error: toy@2: stopped; its outputs are as they were\n"),
        (
            FileNotFoundError(errno.ENOENT, "no such file", "data/raw/train.jsonl"),
            1,
            "FAILED",
            "error: toy@2: data/raw/train.jsonl is missing; its outputs are as they were. `dvc repro` makes what a "
            "stage reads\n",
        ),
    ],
)
def test_what_a_user_can_mend_is_one_line(
    error: BaseException, code: int, status: str, line: str, tracker: FakeTracker, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_toy(fail_with(error)) == code
    assert capsys.readouterr().err == line
    assert tracker.status == status
    assert Path("out.txt").read_text() == "old" and not Path(".partial").exists()


def test_a_bug_shows_its_traceback(tracker: FakeTracker, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_toy(fail_with(ZeroDivisionError("oops"))) == 1
    assert "Traceback" in (shown := capsys.readouterr().err) and "ZeroDivisionError: oops" in shown
    assert tracker.status == "FAILED"
    assert Path("out.txt").read_text() == "old" and not Path(".partial").exists()


def test_a_missing_file_outside_the_workspace_is_not_an_input(
    tracker: FakeTracker, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_toy(fail_with(FileNotFoundError(errno.ENOENT, "no such file", "/lib/x"))) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (PassingError("the hub does not answer"), 75),
        (ConnectionResetError("gone"), 75),
        (UserError("a text says: Connection refused, timed out"), 1),
        (ValueError("Connection refused"), 1),
    ],
)
def test_what_may_pass_has_an_exit_status_of_its_own(error: Exception, code: int, tracker: FakeTracker) -> None:
    assert run_toy(fail_with(error)) == code
    assert tracker.status == "FAILED" and Path("out.txt").read_text() == "old"


def _wrapped_full_disk() -> RuntimeError:
    error = RuntimeError("could not save")
    error.__cause__ = OSError(errno.ENOSPC, "full")
    return error


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "full"), OSError(errno.EDQUOT, "quota"), ValueError("No space left on device (os error 28)")]
    + [_wrapped_full_disk()],
)
def test_a_full_disk_is_one_line(error: Exception, tracker: FakeTracker, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_toy(fail_with(error)) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("error: toy@2: the disk is full; its outputs are as they were. Make room in ")
    assert shown.count("\n") == 1
    assert Path("out.txt").read_text() == "old"


def test_a_device_without_room_is_a_full_disk(tracker: FakeTracker, capsys: pytest.CaptureFixture[str]) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("only Linux has /dev/full")
    assert run_toy(lambda _run, _out: Path("/dev/full").write_text("x")) == 1
    assert "the disk is full" in capsys.readouterr().err


@pytest.mark.parametrize(("key", "code"), [("risk.alpha", 1), ("kl.coef", 0)])
def test_own_params_edited_meanwhile_throw_the_output_away(
    key: str, code: int, tracker: FakeTracker, capsys: pytest.CaptureFixture[str]
) -> None:
    """`risk` is among the parameters of `toy` in dvc.yaml, `kl.coef` is not."""

    def body(_run: Run, _out: Path) -> None:
        Path("params.yaml").write_text(set_value(Path("params.yaml").read_text(), key, 0.9))

    assert run_toy(body) == code
    assert ("params.yaml was edited while this ran (risk)" in capsys.readouterr().err) == (code == 1)
    assert (Path("out.txt").read_text() == "old") == (code == 1)


def test_a_missing_params_file_is_one_line(tracker: FakeTracker, capsys: pytest.CaptureFixture[str]) -> None:
    Path("params.yaml").unlink()
    assert run_toy(fail_with(AssertionError())) == 1
    assert capsys.readouterr().err.startswith("error: toy@2: params.yaml is missing")


def test_checkpoints_are_found_again_and_removed_at_the_end(tracker: FakeTracker) -> None:
    def killed(run: Run, _out: Path) -> None:
        (run.checkpoints / "state").write_text("half")
        raise KeyboardInterrupt

    def finishing(run: Run, _out: Path) -> None:
        assert (run.checkpoints / "state").read_text() == "half"

    assert run_toy(killed) == 130
    assert [path.name[:6] for path in Path(".checkpoints").iterdir()] == ["toy-2-"]
    assert run_toy(finishing) == 0
    assert list(Path(".checkpoints").iterdir()) == []


def test_checkpoints_stand_in_the_main_repository(
    tracker: FakeTracker, params: Params, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    main = tmp_path_factory.mktemp("main")
    monkeypatch.setenv("DVC_ROOT", str(main))
    run = Run(params, read_inputs("toy", {"seed": 1}, params), tracker)  # type: ignore[arg-type]
    assert run.checkpoints == main / ".checkpoints" / f"toy-1-{run.inputs_hash[:16]}"


def test_only_the_newest_checkpoints_of_other_inputs_are_kept(tracker: FakeTracker, params: Params) -> None:
    ages = {f"toy-1-{number:016x}": number for number in range(OLD_CHECKPOINTS + 2)}
    ages |= {"toy-2-" + "a" * 16: 0, "toy-10-" + "a" * 16: 0}
    for name, age in ages.items():
        Path(".checkpoints", name).mkdir(parents=True)
        os.utime(Path(".checkpoints", name), (age, age))
    run = Run(params, read_inputs("toy", {"seed": 1}, params), tracker)  # type: ignore[arg-type]
    kept = {path.name for path in run.checkpoints.parent.iterdir()}
    assert set(ages) - kept == {f"toy-1-{number:016x}" for number in (0, 1)}


def test_the_environment_is_set_before_the_stage(tracker: FakeTracker, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")

    def body(run: Run, _out: Path) -> None:
        assert all(os.environ[name] == value for name, value in ENVIRONMENT.items())
        assert os.environ["OMP_NUM_THREADS"] == str(run.params.runtime.threads)

    assert run_toy(body) == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_training_saves_before_the_signal_ends_the_stage(number: int, code: int, tracker: FakeTracker) -> None:
    def body(run: Run, _out: Path) -> None:
        with HeldSignals() as held:
            signal.raise_signal(number)
            assert held.number == number
            (run.checkpoints / "state").write_text("saved")
        pytest.fail("the signal was lost")

    assert run_toy(body) == code
    assert tracker.status == "KILLED"
    assert next(Path(".checkpoints").glob("*/state")).read_text() == "saved"
    assert Path("out.txt").read_text() == "old"


def test_of_several_processes_the_first_alone_writes(tracker: FakeTracker, monkeypatch: pytest.MonkeyPatch) -> None:
    def body(run: Run, _out: Path) -> None:
        (run.checkpoints / "state").write_text("of the first")

    def failing(run: Run, out: Path) -> None:
        body(run, out)
        raise KeyboardInterrupt

    Path(".partial").mkdir()
    Path(".partial/out.txt").write_text("of the first")
    monkeypatch.setenv("RANK", "1")
    assert run_toy(body) == 0
    assert run_toy(failing) == 130
    assert Path("out.txt").read_text() == "old"
    assert Path(".partial/out.txt").read_text() == "of the first"
    assert len(list(Path(".checkpoints").glob("*/state"))) == 1
    monkeypatch.setenv("RANK", "0")
    assert run_toy(body) == 0
    assert Path("out.txt").read_text() == "2 in\n"
    assert list(Path(".checkpoints").iterdir()) == []


SLEEPER = """
import sys, time
from pathlib import Path
from tasks.running.stage import Run, stage

@stage
def toy(run: Run, seed: int, out: Path) -> None:
    with run.output(out) as file:
        file.write_text("half")
        run.tracker.metrics({"loss": 1.0}, 1)
        run.tracker.wait(60)
        run.log("ready")
        time.sleep(60)

toy()
"""


def start_sleeper() -> subprocess.Popen[str]:
    """A real stage process that has begun to write its output."""
    command = [sys.executable, "-c", SLEEPER, "--seed", "1", "--out", "out.txt"]
    path = str(Path(tasks.running.stage.__file__).parents[2])
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    assert process.stdout is not None
    while "ready" not in (line := process.stdout.readline()):
        assert line, process.communicate()[1]
    return process


@pytest.mark.slow
def test_killed_stages_leave_nothing_half_written_and_no_run_open(workspace: Path) -> None:
    from mlflow.tracking.client import MlflowClient

    ends = {}
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT):
        process = start_sleeper()
        process.send_signal(number)
        _, shown = process.communicate(timeout=30)
        ends[number] = (process.returncode, shown)
        assert not Path("out.txt").exists()
    assert ends[signal.SIGKILL] == (-signal.SIGKILL, "")
    assert ends[signal.SIGTERM] == (143, "error: toy@1: terminated; its outputs are as they were\n")
    assert ends[signal.SIGINT] == (130, "error: toy@1: stopped; its outputs are as they were\n")
    client = MlflowClient(f"sqlite:///{workspace}/mlflow.db")
    experiment = client.get_experiment_by_name("rarlhf")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert [run.info.status for run in runs] == ["KILLED"] * 3
    assert [run.data.metrics.get("loss") for run in runs[:2]] == [1.0, 1.0]  # newest first; SIGKILL may lose the buffer
