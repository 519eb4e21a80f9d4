"""Progress: lines in a log, a bar in a terminal."""

import sys
from io import StringIO

import pytest

import rarlhf.messages.progress
from rarlhf.messages.progress import SilentRecorder, progress


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


def test_a_log_gets_a_line_now_and_then_and_one_at_the_end(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 4.0, 12.0, 15.0, 21.0])
    monkeypatch.setattr(rarlhf.messages.progress.time, "monotonic", lambda: next(clock))
    with progress("sft", 4) as show:
        for done in range(1, 5):
            show(done, f"loss {done}")
    # at 4 s nothing; at 12 s, with 2 of 4 done, 12 s are left; at 15 s nothing; at 21 s the end
    assert capsys.readouterr().out.splitlines() == [
        "sft 2/4 loss 2 (12 s, about 12 s left)",
        "sft 4/4 loss 4 (21 s, about 0 s left)",
    ]


def test_a_terminal_gets_a_bar_and_no_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress("sft", 4) as show:
        show(3, "loss 3")
        show(4, "loss 4")
    assert "sft: 100%" in terminal.getvalue()
    assert capsys.readouterr().out == ""


def test_an_error_inside_goes_through(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyError), progress("sft", 4):
        raise KeyError
    assert capsys.readouterr().out == ""


def test_the_silent_recorder_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    recorder = SilentRecorder()
    recorder.record(1, {"x": 1.0})
    recorder.say("x")
    assert capsys.readouterr() == ("", "")


def test_of_several_processes_one_speaks(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        with progress(f"process {rank}", 1) as show:
            show(1, "done")
    assert capsys.readouterr().out.splitlines() == ["process 0 1/1 done (0 s, about 0 s left)"]
