"""The picture of the pipeline, and that of docs/pipeline.md."""

import re
import shutil
from pathlib import Path

import pytest

from flows.running.graph import read_graph
from flows.stages import main, mermaid

REPOSITORY = Path(__file__).parents[2]


def test_runs_of_a_stage_are_one_box_and_arrows_that_follow_are_left_out() -> None:
    graph = {
        "code": [],
        "base": ["code"],
        "ppo@rlhf-1": ["base"],
        "ppo@rlhf-2": ["base"],
        "evaluate": ["base", "code", "ppo@rlhf-1", "ppo@rlhf-2"],
    }
    assert mermaid(graph).splitlines() == [
        "flowchart TD",
        '  base["base"]',
        '  code["code"]',
        '  evaluate["evaluate"]',
        '  ppo["ppo x 2"]',
        "  base --> ppo",
        "  ppo --> evaluate",
    ]


def test_the_page_has_the_picture_of_preset_tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/config").write_text("[core]\n    no_scm = True\n")
    shutil.copy(REPOSITORY / "dvc.yaml", tmp_path)
    shutil.copy(REPOSITORY / "presets/tiny.yaml", tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    page = (REPOSITORY / "docs/pipeline.md").read_text(encoding="utf-8")
    (picture,) = re.findall(r"```mermaid\n(.*?)\n```", page, re.DOTALL)
    assert picture == mermaid(read_graph())


def test_outside_a_project_one_line_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main() == 1
    assert capsys.readouterr().err.startswith("error: DVC cannot read the pipeline: ")
