import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from dvc.cli import main as dvc_main

from flows.running.remote import fetch_run_cache, push, restore
from rarlhf.config.errors import UserError


def dvc(*words: str) -> None:
    """Runs DVC in this process and its folder."""
    assert dvc_main(words) == 0


def test_a_second_workspace_computes_nothing_that_the_first_has(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = toy.parent / "other"
    dvc("remote", "add", "team", str(toy.parent / "team"))
    shutil.copytree(toy, other)
    dvc("repro", "-q", "good")
    done = ["first", "twin@1", "good"]
    assert push("team", done) == 4  # three entries of the run cache, and one content that all three results have
    shutil.rmtree(toy / ".dvc" / "cache")

    monkeypatch.chdir(other)  # its dvc.lock knows nothing
    fetch_run_cache("team")
    assert [restore("team", stage) for stage in done] == [True, True, True]
    assert not restore("team", "twin@2")
    command = [sys.executable, "-m", "dvc", "repro", "good"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert told.count("is cached - skipping run") == 3 and "Running stage" not in told
    assert (other / "data" / "good.txt").read_text() == "a\n"


def test_results_that_dvc_lock_names_come_too(toy: Path) -> None:
    dvc("remote", "add", "team", str(toy.parent / "team"))
    dvc("repro", "-q", "first")
    push("team", ["first"])
    shutil.rmtree(toy / ".dvc" / "cache")
    shutil.rmtree(toy / "data")
    assert restore("team", "first")
    assert (toy / "data" / "a.txt").read_text() == "a\n"


def test_a_remote_without_the_results_is_as_good_as_none(toy: Path) -> None:
    dvc("remote", "add", "team", str(toy.parent / "team"))
    fetch_run_cache("team")
    assert not restore("team", "first")


def test_an_unknown_remote_is_said(toy: Path) -> None:
    dvc("remote", "add", "team", str(toy.parent / "team"))
    with pytest.raises(UserError, match="DVC has no remote nosuch; there are team"):
        fetch_run_cache("nosuch")
