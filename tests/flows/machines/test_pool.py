"""How a run deals with what becomes of its stages elsewhere; no server and no DVC."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from prefect.client.schemas.objects import State
from prefect.states import Cancelled, Completed, Crashed, Failed

import flows.machines.pool
from flows.machines.pool import Pool
from flows.machines.request import Request
from flows.machines.server import MAY_PASS
from flows.running.devices import Shares
from flows.running.processes import Processes
from flows.running.reproduce import Ended, PassingTrouble, Repro, StageError

REQUEST = Request(stage="train", commit="c", versions={}, remote="store", force=False, params=None, files={}, locked={})


class Results:
    """In the place of the processes that ask and take; the remote has nothing at first, if not told otherwise."""

    def __init__(self, there: bool = False) -> None:
        self.there = there
        self.calls: list[list[str]] = []

    def __call__(self, command: Sequence[str], *_: object) -> int:
        words = list(command[3:])
        self.calls.append(words)
        if words[0] == "ask" and not self.there:
            Path(words[3]).write_text(REQUEST.model_dump_json())
        return 0


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Results:
    monkeypatch.chdir(tmp_path)
    found = Results()
    monkeypatch.setattr(flows.machines.pool, "run_command", found)
    return found


@pytest.fixture
def bring(results: Results, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Ended, list[str]]]:
    """`bring(state, ...)` brings `train` up to date where its flow runs end so, one after the other."""

    def brought(*states: State[Any] | None, own: bool = True) -> tuple[Ended, list[str]]:
        left = list(states)

        class Asked:
            def __init__(self, request: Request, *_: object) -> None:
                assert request == REQUEST
                self.own = own

            def ended(self, processes: Processes) -> State[Any] | None:
                return left.pop(0)

        monkeypatch.setattr(flows.machines.pool, "Asked", Asked)
        said: list[str] = []
        ended = Pool("machines", "store", "cpu", ["train"]).bring("train", repro(), said.append)
        assert not left
        return ended, said

    return brought


def repro() -> Repro:
    return Repro(False, "store", Processes(), Shares([{}]))


Bring = Callable[..., tuple[Ended, list[str]]]


def test_what_a_machine_made_is_taken(bring: Bring, results: Results) -> None:
    assert bring(Completed()) == (Ended.COMPLETED, [])
    assert [call[:3] for call in results.calls] == [["ask", "store", "train"], ["take", "store", "train"]]
    assert bring(Completed(name="Cached"))[0] is Ended.CACHED


def test_what_the_remote_has_is_asked_of_no_machine(bring: Bring, results: Results) -> None:
    results.there = True
    assert bring()[0] is Ended.CACHED
    assert len(results.calls) == 1


def test_a_vanished_machine_is_replaced_twice(bring: Bring) -> None:
    lost: State[Any] = Crashed(message="worker a gives no sign of life")
    ended, said = bring(lost, lost, Completed())
    assert ended is Ended.COMPLETED
    assert said == ["its machine vanished (worker a gives no sign of life); it starts again on another"] * 2
    with pytest.raises(PassingTrouble, match="worker a gives no sign of life"):
        bring(lost, lost, lost)


def test_failures_come_with_the_machines_words(bring: Bring) -> None:
    with pytest.raises(PassingTrouble, match="train: the network failed"):
        bring(Failed(name=MAY_PASS, message="the network failed"))
    with pytest.raises(StageError, match="train: a refuses train") as caught:
        bring(Failed(name="Refused", message="a refuses train"))
    assert not isinstance(caught.value, PassingTrouble)


def test_a_cancellation_counts_where_it_was_meant(bring: Bring) -> None:
    with pytest.raises(StageError, match="train: on its page"):
        bring(Cancelled(message="on its page"))
    with pytest.raises(IndexError):  # it asks again, where another run had cancelled what was its own
        bring(Cancelled(message="by the other run"), own=False)
    assert bring(None)[0] is Ended.CANCELLED  # stopped with the whole


def test_other_stages_run_here(results: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flows.machines.pool, "reproduce", lambda stage, *_: Ended.COMPLETED)
    assert Pool("machines", "store", "cpu", ["train"]).bring("data", repro(), print) is Ended.COMPLETED
    assert not results.calls


def test_nothing_is_asked_once_the_run_is_stopped(bring: Bring, results: Results) -> None:
    one = repro()
    one.processes.stop()
    assert Pool("machines", "store", "cpu", ["train"]).bring("train", one, print) is Ended.CANCELLED
    assert not results.calls


def test_the_process_that_asks_is_this_python(results: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = []

    def failing(command: Sequence[str], _processes: object, _share: object, lines: list[str], _say: object) -> int:
        commands.append(list(command))
        lines.append("error: train: remote store: no network")
        return 75

    monkeypatch.setattr(flows.machines.pool, "run_command", failing)
    with pytest.raises(PassingTrouble, match="no network"):
        Pool("machines", "store", "cpu", ["train"]).bring("train", repro(), print)
    assert commands[0][:4] == [sys.executable, "-m", "flows.machines.results", "ask"]
