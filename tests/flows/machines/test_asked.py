"""One request on a server that a small class stands in for."""

from types import SimpleNamespace
from typing import Any
from uuid import UUID

import httpx
import pytest
from prefect.client.schemas.objects import State, StateType
from prefect.states import Cancelled, Completed, Running, Scheduled

import flows.machines.asked
from flows.machines.asked import WORKER, Asked, Workers
from flows.machines.request import Request
from flows.running.processes import Processes

REQUEST = Request(stage="train", commit="c", versions={}, remote="store", force=False, params=None, files={}, locked={})


class Server:
    """Keeps flow runs; the state of a run is the next of `states` at each look."""

    def __init__(self, *states: State[Any]) -> None:
        self.states = list(states)
        self.runs: list[SimpleNamespace] = []
        self.logs: list[str] = []
        self.workers = {"a"}
        self.labels = {WORKER: "a"}
        self.set: list[State[Any]] = []
        self.failing: list[Exception] = []

    def read_flow_runs(self, flow_run_filter: Any) -> list[SimpleNamespace]:
        (tag,) = flow_run_filter.tags.all_
        return [run for run in self.runs if tag in run.tags]

    def submit(self, name: str, tags: list[str], idempotency_key: str, **options: Any) -> SimpleNamespace:
        assert name == "rarlhf-stage/pool" and options["work_queue_name"] == "cpu" and options["timeout"] == 0
        assert options["parameters"] == {"request": REQUEST.model_dump()}
        for run in self.runs:
            if run.key == idempotency_key:
                return run
        run = SimpleNamespace(
            id=UUID(int=len(self.runs)), tags=tags, key=idempotency_key, state=Scheduled(), labels=self.labels
        )
        self.runs.append(run)
        return run

    def read_flow_run(self, number: UUID) -> SimpleNamespace:
        if self.failing:
            raise self.failing.pop(0)
        run = self.runs[number.int]
        if self.states:
            run.state = self.states.pop(0)
        return run

    def read_logs(self, log_filter: Any, offset: int, sort: Any) -> list[SimpleNamespace]:
        return [SimpleNamespace(message=text) for text in self.logs[offset:]]

    def set_flow_run_state(self, number: UUID, state: State[Any], force: bool = False) -> None:
        self.set.append(state)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flows.machines.asked, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(flows.machines.asked, "ONLINE_SECONDS", -1.0)
    monkeypatch.setattr(flows.machines.asked, "title_of", str)
    monkeypatch.setattr(flows.machines.asked, "online", lambda client, pool: client.workers)


def asked(server: Server, monkeypatch: pytest.MonkeyPatch) -> tuple[Asked, list[str]]:
    monkeypatch.setattr(flows.machines.asked, "run_deployment", server.submit)
    said: list[str] = []
    return Asked(REQUEST, "cpu", Workers("pool"), server, said.append), said  # type: ignore[arg-type]


def test_the_stages_lines_are_handed_on_and_prefects_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(Running(), Completed())
    server.logs = ["train: one", "Beginning flow run", "train: two"]
    one, said = asked(server, monkeypatch)
    state = one.ended(Processes())
    assert state is not None and state.is_completed() and one.own
    assert said == ["one", "two"]


def test_of_two_runs_that_ask_for_the_same_one_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(Running(), Completed())
    first, _ = asked(server, monkeypatch)
    server.states = []
    first._run = first._handed_over()
    second, said = asked(server, monkeypatch)
    server.states = [Running(), Completed()]
    assert second.ended(Processes()) is not None
    assert (first.own, second.own) == (True, False) and len(server.runs) == 1
    assert said == ["another run has asked for the same; waiting for its result"]
    server.runs[0].state = Cancelled()  # a run that has ended counts no more
    third, _ = asked(server, monkeypatch)
    server.states = [Completed()]
    assert third.ended(Processes()) is not None and third.own and len(server.runs) == 2


def test_two_that_hand_it_over_at_the_same_moment_share_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server()
    first, _ = asked(server, monkeypatch)
    second, _ = asked(server, monkeypatch)
    monkeypatch.setattr(server, "read_flow_runs", lambda flow_run_filter: [])  # both look before either submits
    runs = [one._handed_over() for one in (first, second)]
    assert runs[0] is runs[1] and (first.own, second.own) == (True, False)


def test_a_worker_without_a_sign_of_life_has_vanished(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server()
    server.workers = {"b"}
    one, _ = asked(server, monkeypatch)
    state = one.ended(Processes())
    assert state is not None and state.is_crashed() and state.message == "worker a gives no sign of life"
    assert server.set == [state]


def test_a_stage_that_no_worker_has_taken_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(Scheduled(), Scheduled(), Completed())
    server.workers, server.labels = set(), {}
    one, said = asked(server, monkeypatch)
    assert one.ended(Processes()) is not None and not server.set
    assert said == ["no worker of pool pool is online; it waits for one (python -m flows.machines.worker)"]


def test_a_run_that_is_stopped_cancels_its_own_stage_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server()
    for own in (True, False):
        one, _ = asked(server, monkeypatch)
        one._run = one._handed_over()
        assert one.own is own
        server.states = [Cancelled()] if own else []
        processes = Processes()
        processes.stop()
        assert one.ended(processes) is None
        assert [state.type for state in server.set] == [StateType.CANCELLING]
        server.runs[0].state = Running()


def test_a_server_that_does_not_answer_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(Completed())
    request = httpx.Request("GET", "http://x")
    busy, wrong = (
        httpx.HTTPStatusError("x", request=request, response=httpx.Response(status, request=request))
        for status in (503, 422)
    )
    server.failing = [httpx.ConnectError("x"), busy]
    one, said = asked(server, monkeypatch)
    assert one.ended(Processes()) is not None
    assert said == [
        f"Prefect's server does not answer ({kind}); trying again" for kind in ("ConnectError", "HTTPStatusError")
    ]
    server.failing = [wrong]
    with pytest.raises(httpx.HTTPStatusError):
        asked(server, monkeypatch)[0].ended(Processes())
