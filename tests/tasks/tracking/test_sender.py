import threading
import time
from pathlib import Path

import pytest

import tasks.tracking.sender
from tasks.tracking.sender import Sender


class Store:
    """Takes words, or fails; counts the tries."""

    def __init__(self) -> None:
        self.words: list[str] = []
        self.error: Exception | None = None
        self.tries = 0

    def take(self, word: str) -> None:
        self.tries += 1
        if self.error:
            raise self.error
        self.words.append(word)


@pytest.fixture
def store() -> Store:
    return Store()


def until(what) -> None:
    end = time.monotonic() + 10
    while not what():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_what_fails_is_kept_in_order_and_sent_when_the_store_is_back(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tasks.tracking.sender, "RETRY_SECONDS", 0.2)
    sender = Sender(tmp_path / "down", 5)
    store.error = OSError("no route")
    for word in ("a", "b", "c"):
        sender.add(lambda word=word: store.take(word))
    until(lambda: store.tries >= 3)
    assert (tmp_path / "down").exists()
    store.error = None
    sender.wait(10)
    assert store.words == ["a", "b", "c"]
    assert sender.finish()
    assert not (tmp_path / "down").exists()
    warning, back = capsys.readouterr().err.splitlines()
    assert warning.endswith("nothing else is affected: no route") and back.startswith("MLflow answers again")


def test_the_last_try_is_at_the_end(tmp_path: Path, store: Store) -> None:
    sender = Sender(tmp_path / "down", 5)
    store.error = OSError()
    sender.add(lambda: store.take("a"))
    until(lambda: store.tries == 1)
    store.error = None
    start = time.monotonic()
    assert sender.finish() and store.words == ["a"]
    assert time.monotonic() - start < 2


def test_a_store_that_stays_away_costs_no_time(
    tmp_path: Path, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    store.error = OSError()
    start = time.monotonic()
    for _ in range(3):
        sender = Sender(tmp_path / "down", 5)
        sender.add(lambda: store.take("a"))
        until(lambda tries=store.tries: store.tries > tries)
        assert not sender.finish()
    assert time.monotonic() - start < 2
    assert capsys.readouterr().err == (
        "warning: MLflow tracking fails and is tried again; nothing else is affected: OSError\n"
    )


def test_a_store_that_hangs_is_waited_for_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of many short stages the first alone waits its patience."""
    forever = threading.Event()
    seconds, senders = [], []
    for _ in range(3):
        senders.append(Sender(tmp_path / "down", 0.5))
        senders[-1].add(forever.wait)
        start = time.monotonic()
        assert not senders[-1].finish()
        seconds.append(time.monotonic() - start)
    assert 0.5 <= seconds[0] < 1.5 and max(seconds[1:]) < 0.3
    assert capsys.readouterr().err.count("\n") == 1
    forever.set()
    for sender in senders:
        sender._thread.join(10)  # else what it says would be read in the next test


def test_what_is_refused_for_good_is_left_out(tmp_path: Path, store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    class Refused(Exception):
        error_code = "INVALID_PARAMETER_VALUE"

    def refuse() -> None:
        raise Refused("no such run")

    sender = Sender(tmp_path / "down", 5)
    for job in (refuse, lambda: store.take("a"), refuse, lambda: store.take("b")):
        sender.add(job)
    assert sender.finish() and store.words == ["a", "b"]
    assert (
        capsys.readouterr().err == "warning: MLflow tracking is not complete; nothing else is affected: no such run\n"
    )


def test_what_the_rest_needs_is_never_left_out(tmp_path: Path, store: Store) -> None:
    sender = Sender(tmp_path / "down", 5)
    store.error = ValueError("odd answer")
    sender.add(lambda: store.take("open"), needed=True)
    sender.add(lambda: store.take("rest"))
    until(lambda: store.tries == 1)
    store.error = None
    assert sender.finish() and store.words == ["open", "rest"]
