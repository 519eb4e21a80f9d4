"""Texts that would steer a terminal are shown as escapes, wherever they are printed."""

import json

import pytest

import rarlhf.commands.main
from rarlhf.config.errors import UserError
from rarlhf.config.escapes import safe

STEERING = "\x1b[2Jred\x9b31m \u202edrow \x7f\u200b\ud800\U000e0041 é 好"


def test_safe_keeps_line_ends_alone() -> None:
    assert safe("a\x1b[2J\nb\u202e") == "a\\x1b[2J\nb\\u202e"
    assert safe("a\u2028b\rc\x85d") == "a\\u2028b\\rc\\x85d"


def test_json_lines_hold_the_same_text_without_steering_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    record = {STEERING: [STEERING, 1.5]}
    rarlhf.commands.main._print_json(record)
    out = capsys.readouterr().out
    assert out.removesuffix("\n").isprintable()
    assert "é 好" in out
    assert json.loads(out) == record


def test_errors_of_the_command_do_not_steer_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(arguments: object) -> None:
        raise UserError(f"a scorer raised {STEERING}\nand told more")

    monkeypatch.setattr(rarlhf.commands.main, "_score", fail)
    assert rarlhf.commands.main.main(["score", "a text"]) == 1
    lines = capsys.readouterr().err.removesuffix("\n").split("\n")
    assert len(lines) == 2
    assert all(line.isprintable() for line in lines)
