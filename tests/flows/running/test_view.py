"""What a run shows: lines in a log; in a terminal a last line that is drawn again."""

import re
import sys
from collections.abc import Iterator
from io import StringIO

import pytest

import flows.running.view
from flows.running.graph import Graph
from flows.running.reproduce import Ended
from flows.running.view import View

GRAPH: Graph = {"base": [], "ppo@a-1": ["base"], "ppo@a-2": ["base"], "ppo@a-3": ["base"], "judge": ["ppo@a-1"]}


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    clock = Clock()
    monkeypatch.setattr(flows.running.view, "time", clock)
    yield clock


def test_a_log_has_a_line_for_each_start_and_end(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with View(GRAPH, ["base"], 2) as view:
        view.start("ppo@a-1")
        view.start("ppo@a-2")
        for line in (
            "Running stage 'ppo@a-1':",
            "> python3 -m tasks.ppo",
            "score +1.00",
            "Updating lock file 'dvc.lock'",
        ):
            view.line("ppo@a-1", line)
        clock.now = 20.0
        view.end("ppo@a-1", Ended.COMPLETED)
        view.start("ppo@a-3")
        clock.now = 24.0
        view.line("ppo@a-2", "error: ppo@a-2: as told")
        view.end("ppo@a-2", Ended.FAILED)
        view.end("ppo@a-3", Ended.CANCELLED)
    assert capsys.readouterr().out.splitlines() == [
        "ppo@a-1: started",
        "ppo@a-2: started",
        "ppo@a-1: score +1.00",
        # ppo@a-2 has run for 20 s, as long as a ppo takes; then ppo@a-3; nobody knows yet how long judge takes
        "ppo@a-1: done in 20 s; 2 of 5 stages, more than 20 s left",
        "ppo@a-3: started",
        "ppo@a-2: error: ppo@a-2: as told",
        "ppo@a-2: failed after 24 s; 2 of 5 stages, more than 16 s left",
        "ppo@a-3: stopped after 4 s",
    ]


def test_one_at_a_time_needs_no_names(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with View(GRAPH, [], 1) as view:
        view.start("base")
        view.line("base", "1,000 rows")
        view.end("base", Ended.CACHED)
    assert capsys.readouterr().out.splitlines() == [
        "base: started",
        "1,000 rows",
        "base: up to date (0 s); 1 of 5 stages",
    ]


def test_a_log_says_once_a_minute_how_far_a_long_stage_is(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with View(GRAPH, ["base"], 2) as view:
        view.start("ppo@a-1")
        for clock.now in range(10, 140, 10):  # type: ignore[assignment]
            view.line("ppo@a-1", f"rlhf seed 1 {clock.now}/140 score ({clock.now} s, about {140 - clock.now} s left)")
        assert view.summary() == "1 of 5 stages, more than 10 s left"
    assert capsys.readouterr().out.splitlines() == [
        "ppo@a-1: started",
        "rlhf seed 1 60/140 score (60 s, about 80 s left)",
        "rlhf seed 1 120/140 score (120 s, about 20 s left)",
    ]


def test_what_is_left_out_counts_as_no_time(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with View({"a@1": [], "a@2": [], "b": ["a@1"]}, [], 1) as view:
        view.start("a@1")
        clock.now = 30.0
        view.end("a@1", Ended.COMPLETED)
        view.leave_out("b")
        view.start("a@2")
        clock.now = 35.0
        assert view.summary() == "1 of 3 stages, about 25 s left"


def test_a_terminal_says_in_its_last_line_what_runs(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("COLUMNS", "90")
    monkeypatch.setenv("TERM", "xterm")
    with View(GRAPH, ["base"], 2) as view:
        view.start("ppo@a-1")
        view.start("ppo@a-2")
        clock.now = 10.0
        view.line("ppo@a-1", "rlhf seed 1 40/100 score +1.00 (10 s, about 15 s left)")
        last = "1 of 5 stages, more than 15 s left | ppo@a-1 40/100 10 s | ppo@a-2 10 s"
        assert terminal.getvalue().endswith(f"\r\x1b[K{last}")
        view.line("ppo@a-2", "plain words")
        assert terminal.getvalue().endswith(f"\r\x1b[Kppo@a-2: plain words\n\r\x1b[K{last}")
        clock.now = 12.0
        view._draw()
        assert terminal.getvalue().endswith("more than 13 s left | ppo@a-1 40/100 12 s | ppo@a-2 12 s")
    assert terminal.getvalue().endswith("\r\x1b[K") and "started" not in terminal.getvalue()
    assert all(len(line) < 90 for line in re.split(r"\r\x1b\[K|\n", terminal.getvalue()))


def test_the_last_line_is_drawn_every_second(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(flows.running.view, "TICK_SECONDS", 0.01)
    drawn = 0
    with View(GRAPH, [], 1) as view:
        view.start("base")
        for _ in range(500):
            drawn = terminal.getvalue().count("0 of 5 stages | base")
            if drawn > 2:
                break
            flows.running.view.time.sleep(0.01)
    assert drawn > 2
