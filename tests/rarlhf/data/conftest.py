"""A folder of data files."""

import pytest


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder `data.path` names, in a current directory of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    (tmp_path / "rows").mkdir()
    return tmp_path / "rows"
