import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

import flows.running.stages
from flows.running.devices import Shares
from flows.running.processes import Processes
from flows.running.reproduce import PassingTrouble, Repro, StageError
from flows.running.stages import _may_pass, run_stage, run_stages

DIAMOND = {"a": [], "b": ["a"], "c": ["a"], "d": ["a"], "e": ["b", "c"], "f": ["d"]}


def repro(processes: Processes | None = None, *shares: Mapping[str, str]) -> Repro:
    return Repro(False, None, processes or Processes(), Shares(shares or [{}]))


class Future:
    """Of a task that never runs."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.state: State[Any] = Completed()

    def wait(self) -> None:
        """It has ended."""

    def add_done_callback(self, done: Callable[["Future"], None]) -> None:
        if self.name == "c":
            raise KeyboardInterrupt
        done(self)


class Recorded:
    """In the place of Prefect's runner of tasks; it runs nothing, and notes what each task is given and waits for."""

    submitted: dict[str, tuple[list[str], list[str]]]
    workers: int

    def __init__(self, max_workers: int) -> None:
        Recorded.submitted, Recorded.workers = {}, max_workers

    def __enter__(self) -> "Recorded":
        return self

    def __exit__(self, *error: object) -> None: ...

    def submit(self, task: Any, parameters: dict[str, object], wait_for: list[Future]) -> Future:
        assert task.task_run_name == f"title of {task.name}"
        self.submitted[task.name] = list(parameters), [future.name for future in wait_for]
        return Future(task.name)


def test_prefect_is_told_what_each_stage_waits_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flows.running.stages, "ThreadPoolTaskRunner", Recorded)
    monkeypatch.setattr(flows.running.stages, "title_of", lambda stage: f"title of {stage}")
    graph = {name: upstream for name, upstream in DIAMOND.items() if name not in "ce"}
    states = run_stages(graph, {"a", "b"}, repro(None, {}, {}))
    skipped = {"a": ([], []), "b": ([], ["a"])}  # what is up to date needs no process and no share
    given = ["stage", "repro", "bring"]
    assert Recorded.submitted == skipped | {"d": (given, ["a"]), "f": (given, ["d"])}
    assert Recorded.workers == 2
    assert list(states) == list(graph) and all(state.is_completed() for state in states.values())


def test_whatever_ends_the_flow_stops_the_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    processes = Processes()
    monkeypatch.setattr(flows.running.stages, "ThreadPoolTaskRunner", Recorded)
    monkeypatch.setattr(flows.running.stages, "title_of", lambda stage: f"title of {stage}")
    with pytest.raises(KeyboardInterrupt):
        run_stages(DIAMOND, set(), repro(processes))
    assert processes.stopped


def test_a_stage_that_failed_gives_its_share_back(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flows.running.stages, "get_run_logger", lambda: logging.getLogger("flow"))
    share = {"SHARE": "7"}
    with (toy / "dvc.yaml").open("a") as stream:
        stream.write("  seen: {cmd: echo share $SHARE; exit 1}\n")
    one = repro(None, share)
    for _ in range(2):
        with pytest.raises(StageError, match="^seen: "):
            run_stage.fn("seen", one)
    with one.shares.one() as free:
        assert free == share


def test_what_waits_for_a_share_does_not_start_once_the_flow_is_stopped() -> None:
    processes = Processes()
    processes.stop()
    assert run_stage.fn("nosuch", repro(processes)).is_cancelled()


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
        with pytest.raises(StageError) as caught:
            run_stage.fn(stage, repro())
        kinds[stage] = caught.type
    assert kinds == {"said": StageError, "passing": PassingTrouble, "killed": PassingTrouble}


@pytest.mark.parametrize(("error", "again"), [(PassingTrouble("x", []), True), (StageError("x", []), False)])
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
            if record.getMessage() == "slow: started":
                sessions.extend(os.getsid(child.pid) for child in psutil.Process().children(recursive=True))
                processes.stop()

    logger = logging.Logger("flow")
    logger.addHandler(Log())
    monkeypatch.setattr(flows.running.stages, "get_run_logger", lambda: logger)
    begun = time.monotonic()
    state = run_stage.fn("slow", repro(processes))
    assert state.is_cancelled() and time.monotonic() - begun < 50  # stopped, not waited for: it sleeps 60 s
    assert sessions and not any(living(session) for session in sessions if session != os.getsid(0))
    assert not any(json.loads(Path(".dvc/tmp/rwlock").read_text()).values())
    later = processes.start([sys.executable, "-c", "import time; time.sleep(60)"], {})
    assert later.wait(30) != 0 and later.stdout is not None  # what starts after the stop is stopped too
    later.stdout.close()
    subprocess.run([sys.executable, "-m", "dvc", "repro", "-q", "first"], check=True, timeout=60)
