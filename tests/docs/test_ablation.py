"""docs/ablation.md: its commands make cells that their presets allow; tests/flows/test_ablation.py runs some."""

import shlex
from pathlib import Path

import pytest

from flows.ablations.cells import make_cells
from flows.ablations.choice import choose
from flows.ablations.command import parser
from tests.docs.pages import REPOSITORY, blocks

ABLATION = "python -m flows.ablation "
COMMANDS = [line for line in "".join(blocks("ablation.md", "")).splitlines() if line.startswith(ABLATION)]
PRESETS = ["imdb-gpt2", "tiny", "tiny", "tiny", "tiny", "tiny"]


def test_all_commands_are_tried() -> None:
    assert len(COMMANDS) == len(PRESETS)


@pytest.mark.parametrize(("command", "preset"), list(zip(COMMANDS, PRESETS, strict=False)))
def test_a_command_makes_cells_that_are_allowed(
    command: str, preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_bytes((REPOSITORY / "presets" / f"{preset}.yaml").read_bytes())
    options = parser().parse_args(shlex.split(command.removeprefix(ABLATION)))
    asked = vars(options) | {"grid": dict(options.grid), "cells": [dict(cell) for cell in options.cells]}
    choice = choose(**{key: value for key, value in asked.items() if key != "jobs"})
    cells = make_cells(choice.points, choice.common, choice.methods)
    assert len(cells) == (18 if options.paper == "explanations" else 3 if options.cells or options.frontier else 4)
    if options.grid:
        assert "alpha-0.2-warmup-30" in [cell.name for cell in cells]
