"""Folders, git revisions and DVC experiments as places of runs."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from dvc.cli import main as dvc_main

from rarlhf.config.errors import UserError
from rarlhf.evaluation.compare_sources import opened
from tests.rarlhf.evaluation.runs import compared, write_metrics, write_run

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[3]
DVC_YAML = "stages:\n  generate:\n    cmd: python3 -c pass\n    outs:\n      - generations/rlhf\n      - judgements\n"
SHIFTS = {"rlhf": {1: 0.0, 2: 0.0}}


def git(*words: str) -> None:
    subprocess.run(["git", "-c", "user.name=test", "-c", "user.email=test", *words], check=True, capture_output=True)


def with_pipeline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets `python -m tasks.revision` start in any folder."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))


def dvc(*words: str) -> None:
    assert dvc_main(words) == 0


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with two commits, `one` with scores 0 and `main` with scores 1, and the experiment `exp` with 2."""
    folder = tmp_path_factory.mktemp("made") / "project"
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for person in ("AUTHOR", "COMMITTER"):  # `dvc exp save` makes a commit
            patch.setenv(f"GIT_{person}_NAME", "test")
            patch.setenv(f"GIT_{person}_EMAIL", "test")
        git("init", "-q", "-b", "main")
        dvc("init", "-q")
        Path("dvc.yaml").write_text(DVC_YAML)
        for shift, keep in ((0.0, ["tag", "one"]), (1.0, ["tag", "two"])):
            _make(shift)
            git("add", "-A", ".")
            git("commit", "-q", "-m", str(shift))
            git(*keep)
        _make(2.0)
        dvc("exp", "save", "-q", "-n", "exp")
        git("checkout", "-q", ".")
        dvc("checkout", "-q")
    return folder


def _make(shift: float) -> None:
    shutil.rmtree("generations", ignore_errors=True)
    Path("judgements").mkdir(exist_ok=True)
    Path("judgements/told").write_text(str(shift))
    write_run(Path(), {"rlhf": {1: shift, 2: shift}}, risk__alpha=(shift + 1) / 4)
    write_metrics(Path(), {"rlhf": {1: shift, 2: shift}})
    dvc("commit", "-q", "-f")


@pytest.fixture
def project(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "project"
    shutil.copytree(made, folder, symlinks=True)
    monkeypatch.chdir(folder)
    with_pipeline(monkeypatch)
    return folder


@pytest.mark.parametrize(("a", "b", "apart"), [("one", "main", 1.0), ("exp", "HEAD", -1.0), (".", "exp", 1.0)])
def test_revisions_and_experiments_are_compared(a: str, b: str, apart: float, project: Path) -> None:
    found = compared(a, b)
    assert found.by_prompts
    assert found.pairs[0].differences["reward_mean"]["per_seed"] == pytest.approx([apart, apart])
    assert [key for key, _, _ in found.changed] == ["risk.alpha"]
    assert found.names == (a, b)


def test_the_files_of_a_revision_are_deleted_at_the_end(project: Path) -> None:
    with opened("one") as source:
        folder = source.folder
        assert sorted(path.name for path in folder.iterdir()) == ["generations", "judgements", "metrics", "params.yaml"]
        assert (folder / "judgements/told").read_text() == "0.0"
    assert not folder.exists()


def test_what_the_cache_lacks_is_compared_by_seed_with_the_command_that_gets_it(project: Path) -> None:
    shutil.rmtree(".dvc/cache")
    found = compared("one", "main")
    assert not found.by_prompts
    assert found.pairs[0].differences["reward_mean"]["per_seed"] == [1.0, 1.0]
    assert any("Generations of one: DVC's cache lacks them; `dvc fetch --all-commits`" in note for note in found.notes)
    git("rm", "-q", "-r", "metrics")
    git("commit", "-q", "-m", "no metrics")
    with pytest.raises(UserError, match=r"^HEAD has neither generations/ nor metrics/evaluate.json to compare; DVC's"):
        compared("HEAD", "one")


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("nothing", "^nothing is no folder, git revision or DVC experiment here .*; look at `git branch"),
        ("empty", "^the folder empty has no params.yaml, and there is no git revision or DVC experiment of that name"),
    ],
)
def test_an_unknown_place_is_refused(place: str, message: str, project: Path) -> None:
    Path("empty").mkdir()
    with pytest.raises(UserError, match=message) as refusal:
        compared(place, ".")
    assert "\n" not in str(refusal.value)


def test_a_revision_without_params_is_refused(project: Path) -> None:
    git("rm", "-q", "params.yaml")
    git("commit", "-q", "-m", "no params")
    with pytest.raises(UserError, match=r"^HEAD has no params.yaml: name a revision of this project"):
        compared("HEAD", "one")


def test_where_there_is_no_repository_only_folders_are_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with_pipeline(monkeypatch)
    with pytest.raises(UserError, match=r"^main is no folder, git revision or DVC experiment here"):
        compared("main", ".")


@pytest.mark.parametrize("lacking", ["tasks", "dvc"])
def test_without_the_pipeline_only_folders_are_known(
    lacking: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if lacking == "dvc":
        Path("dvc.py").write_text("raise ImportError")
        with_pipeline(monkeypatch)
    else:
        monkeypatch.setenv("PYTHONPATH", "")
    run = write_run(tmp_path / "run", SHIFTS)
    assert compared(run, run).pairs[0].equal
    with pytest.raises(UserError, match=r"^main is no folder with params.yaml, and the pipeline .* cannot be started"):
        compared("main", run)


def test_a_folder_goes_before_a_revision_of_its_name(project: Path) -> None:
    write_run(Path("one"), {"rlhf": {1: 5.0, 2: 5.0}})
    assert compared("main", "one").pairs[0].differences["reward_mean"]["per_seed"] == pytest.approx([4.0, 4.0])


def test_a_folder_with_nothing_to_compare_is_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", SHIFTS)
    shutil.rmtree(run / "generations")
    with pytest.raises(
        UserError, match=r"has neither generations/ nor metrics/evaluate.json to compare; `dvc checkout"
    ):
        compared(run, run)
