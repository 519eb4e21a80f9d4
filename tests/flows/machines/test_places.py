import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

import flows.machines.places
import flows.machines.server
import flows.machines.worker
import flows.serving.server
from flows.machines.places import computing, places
from flows.machines.server import CPU, GPU, queue_for
from flows.running.graph import read_graph
from flows.running.reproduce import reproduce
from rarlhf.config.errors import UserError
from rarlhf.config.load import load_params
from tests.flows.machines.clones import Clone

REPOSITORY = Path(__file__).parents[3]


def test_what_computes_with_a_model_goes_to_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    graph = read_graph()
    elsewhere = {stage.partition("@")[0] for stage in computing(graph)}
    here = {stage.partition("@")[0] for stage in graph} - elsewhere
    assert here == {"code", "check", "download", "plan"} | {"source", "scorer"} & here
    assert {"reward", "ppo", "generate", "judge", "evaluate"} <= elsewhere
    assert computing({"ppo@rlhf-1": [], "code": []}) == {"ppo@rlhf-1"}


def test_a_pool_that_cannot_be_used_is_refused(clone: Clone, monkeypatch: pytest.MonkeyPatch) -> None:
    clone("run")
    params = load_params()
    assert places(None, None, {}, params, 3, print).bring is reproduce
    with pytest.raises(UserError, match=r"pool m: machines get inputs .* through a DVC remote; name one \(--remote\)"):
        places("m", None, {}, params, None, print)
    Path("new.py").touch()
    with pytest.raises(UserError, match=r"pool m: machines run the commit .*; commit or remove new.py first"):
        places("m", "store", {}, params, None, print)
    Path("new.py").unlink()
    monkeypatch.setattr(flows.serving.server, "server_answers", lambda: False)
    with pytest.raises(UserError, match="pool m: no Prefect server answers at http://.*; `make deploy` starts one"):
        places("m", "store", {}, params, None, print)


def test_a_stage_asks_for_the_machine_that_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    class Queue:
        status = flows.machines.server.WorkQueueStatus.NOT_READY

        def __enter__(self) -> "Queue":
            return self

        def __exit__(self, *error: object) -> None: ...

        def read_work_queue_by_name(self, name: str, work_pool_name: str) -> "Queue":
            assert (name, work_pool_name) == (GPU, "m")
            return self

    monkeypatch.setattr(flows.machines.server, "get_client", lambda sync_client: Queue())
    assert [queue_for(device, "m") for device in ("cpu", "cuda", "auto")] == [CPU, GPU, CPU]
    Queue.status = flows.machines.server.WorkQueueStatus.READY
    assert queue_for("auto", "m") == GPU


@pytest.mark.parametrize(
    ("accelerators", "options", "queues"),
    [(["0"], [], [GPU, CPU]), ([], [], [CPU]), (["0"], ["--queue", "cpu"], [CPU])],
)
def test_a_worker_serves_what_its_machine_can(
    accelerators: list[str],
    options: list[str],
    queues: list[str],
    clone: Clone,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = clone("machine")
    started: list[tuple[list[str], dict[str, str]]] = []
    monkeypatch.setattr(flows.machines.worker.os, "execve", lambda _, command, env: started.append((command, env)))
    monkeypatch.setattr(flows.machines.worker, "accelerators", lambda: accelerators)
    monkeypatch.setattr(flows.machines.worker, "server_answers", lambda: True)
    monkeypatch.setattr(flows.machines.worker, "ensure", lambda pool: None)
    monkeypatch.setattr(sys, "argv", ["worker", "--pool", "m", *options])
    before = signal.getsignal(signal.SIGINT)
    flows.machines.worker.main()
    signal.signal(signal.SIGINT, before)
    ((command, environment),) = started
    assert command[command.index("--limit") + 1] == "1" and command[command.index("--pool") + 1] == "m"
    assert [word for flag, word in zip(command, command[1:], strict=False) if flag == "--work-queue"] == queues
    assert environment["RARLHF_CLONE"] == str(folder) and environment["PREFECT_HOME"] == str(folder / ".prefect")
    assert environment["PATH"].startswith(str(Path(sys.executable).parent))
    assert environment["PYTHONPATH"].startswith(str(folder))


def test_a_worker_without_a_server_is_refused(
    clone: Clone, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clone("machine")
    monkeypatch.setattr(flows.machines.worker, "server_answers", lambda: False)
    monkeypatch.setattr(sys, "argv", ["worker", "--pool", "m"])
    assert flows.machines.worker.main() == 1
    assert capsys.readouterr().err.startswith("error: no Prefect server answers at http://")
    Path("code.txt").write_text("edited")
    assert flows.machines.worker.main() == 1
    assert "the code here is not that of the commit" in capsys.readouterr().err


ORPHAN = """\
import os, time
if os.fork():
    time.sleep(60)
from flows.machines.stage import _ends_with_worker
with _ends_with_worker():
    print(os.getpid(), flush=True)
    time.sleep(60)
"""


@pytest.mark.slow
def test_a_stage_ends_with_its_worker() -> None:
    """Prefect's worker does not take the runs along that it has started when it is killed."""
    command = [sys.executable, "-c", ORPHAN]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY) as worker:
        assert worker.stdout is not None
        stage = psutil.Process(int(worker.stdout.readline()))
        worker.kill()
        for _ in range(300):
            if not stage.is_running() or stage.status() == psutil.STATUS_ZOMBIE:
                break
            time.sleep(0.1)
        assert not stage.is_running() or stage.status() == psutil.STATUS_ZOMBIE
