"""docs/share.md: its commands in order, on a pipeline of one stage, in a fresh repository and a clone of it."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.docs.pages import agrees, commands

DVC_YAML = """\
stages:
  train:
    cmd: cp params.yaml model.txt && mkdir -p metrics && cp params.yaml metrics/summary.yaml && echo once >> ../ran
    deps: [params.yaml]
    outs: [model.txt]
    metrics: [metrics/summary.yaml: {cache: false}]
"""
WHO = {"GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b"}


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Nothing is read or written outside the test's folder."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("DVC", "GIT"))}
    home = tmp_path / "home"
    own = {"HOME": home, "XDG_CONFIG_HOME": home, "DVC_SITE_CACHE_DIR": home / "dvc", "DVC_NO_ANALYTICS": "true"}
    return kept | {name: str(value) for name, value in own.items()} | WHO


def start(folder: Path, environment: dict[str, str]) -> None:
    """A repository of git and DVC with one commit."""
    (folder / ".dvc").mkdir(parents=True)
    for name, text in {
        ".dvc/config": "[core]\n    autostage = false\n    check_update = false\n",
        ".dvc/.gitignore": "/cache\n/tmp\n/config.local\n",
        "dvc.yaml": DVC_YAML,
        "params.yaml": "a: 1\n",
        ".gitignore": "/model.txt\n",
        "dvc.lock": "",
    }.items():
        (folder / name).write_text(text)
    (folder / "dvc.lock").unlink()
    for command in ("init --quiet --initial-branch main", "add .", "commit --quiet --message start"):
        subprocess.run(["git", *command.split()], cwd=folder, env=environment, check=True)


def test_a_second_clone_computes_nothing(tmp_path: Path, environment: dict[str, str]) -> None:
    folder = tmp_path / "project"
    start(folder, environment)
    for command, shown in commands("share.md"):
        parts = shlex.split(command)
        if parts[0] == "cd":
            folder = (folder / parts[1]).resolve()
            continue
        done = subprocess.run(parts, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        assert not shown or agrees(shown, done.stdout), done.stdout
    assert folder == tmp_path / "second"
    assert (folder / "model.txt").read_text() == (folder / "metrics/summary.yaml").read_text() == "a: 1\n"
    assert (tmp_path / "ran").read_text() == "once\n"  # in the first place alone
