import json
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

import flows.running.stages
from flows.running.guard import SIGNALLED
from flows.running.stages import DVC_FAILED, PassingTrouble, Processes, Repro, Stages, _fail, _may_pass, run_stage
from rarlhf.config.errors import PASSING_STATUS

REPRO = Repro(force=False, remote=None, processes=Processes())
DIAMOND = {"a": [], "b": ["a"], "c": ["a"], "d": ["a"], "e": ["b", "c"], "f": ["d"]}


@dataclass
class Ending:
    """A task's future whose end the test decides."""

    state: State[Any] = field(default_factory=Completed)
    wrapped_future: "Future[None]" = field(default_factory=Future)

    def wait(self) -> None:
        assert self.wrapped_future.done()


class Watched(Stages):
    """Stages that end in the order they were started, two steps after; notes what ran at the same time."""

    def __init__(self, *args: Any, failing: str = "") -> None:
        super().__init__(*args)
        self.failing = failing
        self.started: dict[str, Mapping[str, str]] = {}
        self.together: list[set[str]] = []

    def _submit(self, stage: str, share: Mapping[str, str]) -> None:
        self.started[stage] = share
        self._running[stage] = Ending(Failed() if stage == self.failing else Completed())  # type: ignore[assignment]

    def _take_ended(self) -> None:
        self.together.append(set(self._running))
        next(iter(self._running.values())).wrapped_future.set_result(None)
        super()._take_ended()


def test_what_waits_for_nothing_runs_at_the_same_time_each_on_a_share_of_its_own() -> None:
    one, two = {"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}
    stages = Watched(DIAMOND, set(), [one, two], REPRO)
    assert list(stages.run()) == list(DIAMOND)
    assert stages.together == [{"a"}, {"b", "c"}, {"c", "d"}, {"d", "e"}, {"e", "f"}, {"f"}]
    # a takes the first share and gives it back; b and c take both; d has b's, e has c's, f has d's
    assert list(stages.started.values()) == [one, one, two, one, two, one]


def test_one_share_is_one_stage_at_a_time() -> None:
    stages = Watched(DIAMOND, set(), [{}], REPRO)
    stages.run()
    assert stages.together == [{"a"}, {"b"}, {"c"}, {"d"}, {"e"}, {"f"}]


def test_what_is_up_to_date_or_hopeless_takes_no_share() -> None:
    stages = Watched(DIAMOND, {"a", "b"}, [{"CUDA_VISIBLE_DEVICES": "0"}], REPRO, failing="c")
    states = stages.run()
    assert {name for name, share in stages.started.items() if not share} == {"a", "b", "e"}
    assert states["c"].is_failed() and states["f"].is_completed()  # a sibling of the failed one goes on


def test_whatever_ends_the_flow_stops_the_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    processes = Processes()
    stages = Watched(DIAMOND, set(), [{}], Repro(False, None, processes))

    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(stages, "_take_ended", interrupt)
    with pytest.raises(KeyboardInterrupt):
        stages.run()
    assert processes.stopped


RUN = "ERROR: failed to reproduce 'sft': failed to run: python -m tasks.sft --out models/sft, exited with"


@pytest.mark.parametrize(
    "last",
    [
        [f"{RUN} -9"],
        [f"{RUN} 137"],
        ["error: sft: the hub cannot be reached", f"{RUN} 75"],
        ["ERROR: failed to reproduce 'sft': '/x/models' is busy, it is being blocked by:", "  (PID 3): dvc repro"],
        ["ERROR: Unable to acquire lock. Most likely another DVC process is running"],
    ],
)
def test_a_passing_trouble_is_known_by_dvcs_last_error(last: list[str]) -> None:
    told = next(line for line in last if line.startswith(("error:", "ERROR:")))
    with pytest.raises(PassingTrouble, match=f"^sft: {re.escape(told[:20])}"):
        _fail("sft", ["Running stage 'sft':", *last], DVC_FAILED)


@pytest.mark.parametrize(
    "last",
    [
        ["error: sft: data.path has a text with Connection timed out", f"{RUN} 1"],
        ["requests.ConnectionError: Temporary failure in name resolution", f"{RUN} 1"],
        [f"{RUN} -9", "ERROR: Unable to acquire lock", "error: sft: quotes of other runs, exited with 75", f"{RUN} 1"],
        ["a prompt, exited with 75", f"{RUN} 1"],
        [f"{RUN} 75", "ERROR: failed to reproduce 'other': failed to run: x, exited with 75"],
        [f"{RUN} 143"],
        ["error: sft: Connection refused"],
    ],
)
def test_what_a_stage_writes_does_not_make_its_failure_pass(last: list[str]) -> None:
    with pytest.raises(RuntimeError, match="^sft: ") as caught:
        _fail("sft", ["Running stage 'sft':", *last], DVC_FAILED)
    assert not isinstance(caught.value, PassingTrouble)


def test_a_command_that_is_not_dvc_tells_by_its_own_status() -> None:
    lines = ["error: sft: remote team: Connection refused"]
    with pytest.raises(PassingTrouble, match="sft: error: sft: remote team"):
        _fail("sft", lines, PASSING_STATUS)
    with pytest.raises(PassingTrouble, match="sft: DVC was killed"):
        _fail("sft", ["Running stage 'sft':"], SIGNALLED + 9)
    with pytest.raises(RuntimeError, match="sft: error: sft: remote team") as caught:
        _fail("sft", lines, 1)
    assert not isinstance(caught.value, PassingTrouble)


FAILING = """\
  said: {cmd: "echo error: Connection timed out; exit 1"}
  passing: {cmd: "exit 75"}
  killed: {cmd: "kill -9 $$"}
"""


def test_what_dvc_makes_of_exit_statuses(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (toy / "dvc.yaml").open("a") as stream:
        stream.write(FAILING)
    monkeypatch.setattr(flows.running.stages, "get_run_logger", lambda: logging.getLogger("flow"))
    kinds = {}
    for stage in ("said", "passing", "killed"):
        with pytest.raises(RuntimeError) as caught:
            run_stage.fn(stage, REPRO, {})
        kinds[stage] = caught.type
    assert kinds == {"said": RuntimeError, "passing": PassingTrouble, "killed": PassingTrouble}


@pytest.mark.parametrize(("error", "again"), [(PassingTrouble("x"), True), (RuntimeError("x"), False)])
def test_only_a_passing_trouble_is_tried_again(error: Exception, again: bool) -> None:
    state: State[Any] = Failed(data=error)
    assert _may_pass(None, None, state) is again  # type: ignore[arg-type]


def living(leader: int) -> list[psutil.Process]:
    """Processes of a session that still run; a dead one that nobody has asked about yet does not count."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, ProcessLookupError):
            if os.getsid(process.pid) == leader and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def test_a_stopped_stage_leaves_no_process_and_no_lock(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (toy / "dvc.yaml").open("a") as stream:
        stream.write("  slow:\n    cmd: echo started; sleep 60\n")
    processes = Processes()
    sessions = []

    class Log(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage() == "started":
                sessions.extend(os.getsid(child.pid) for child in psutil.Process().children(recursive=True))
                processes.stop()

    logger = logging.Logger("flow")
    logger.addHandler(Log())
    monkeypatch.setattr(flows.running.stages, "get_run_logger", lambda: logger)
    begun = time.monotonic()
    state = run_stage.fn("slow", Repro(False, None, processes), {})
    assert state.is_cancelled() and time.monotonic() - begun < 50  # stopped, not waited for: it sleeps 60 s
    assert sessions and not any(living(session) for session in sessions if session != os.getsid(0))
    assert not any(json.loads(Path(".dvc/tmp/rwlock").read_text()).values())
    later = processes.start([sys.executable, "-c", "import time; time.sleep(60)"], {})
    assert later.wait(30) != 0 and later.stdout is not None  # what starts after the stop is stopped too
    later.stdout.close()
    subprocess.run([sys.executable, "-m", "dvc", "repro", "-q", "first"], check=True, timeout=60)
