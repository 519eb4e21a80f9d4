from pathlib import Path

import pytest

from tasks.tracking.commit import git_tags


def test_no_git_program_is_no_trouble(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_tags() == {}
