"""What goes through a DVC remote between a run's clone and a machine's, in one process."""

import shutil
from pathlib import Path

import pytest
from dvc.cli import main as dvc_main
from dvc.data_cloud import DataCloud

import flows.machines.results
from flows.machines.clone import ready
from flows.machines.request import Request
from flows.machines.results import ask, send, take
from rarlhf.config.errors import PassingError, UserError
from tests.flows.machines.clones import Clone

pytestmark = pytest.mark.slow


@pytest.fixture
def asked(clone: Clone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Request, Path, Path]:
    """A request for `train@2`, the run's clone, and a machine's, in which the process stands."""
    monkeypatch.setattr(flows.machines.results, "versions", lambda: {"torch": "1"})
    run = clone("run")
    assert dvc_main(["repro", "-q", "first"]) == 0
    request = ask("store", "train@2", force=False)
    assert request is not None
    return request, run, clone("machine")


def repro(stage: str) -> None:
    assert dvc_main(["repro", "-q", "--single-item", stage]) == 0


def test_a_machine_gets_the_inputs_and_the_run_gets_what_it_made(
    asked: tuple[Request, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    request, run, machine = asked
    assert request.inputs == ["data/a.txt"] and request.files == {"metrics/m.json": "1\n"}
    assert request.params is None  # that of the commit
    with ready(request):
        repro("train@2")
        send("store", "train@2")
    monkeypatch.chdir(run)
    take("store", "train@2")
    assert Path("models/2.txt").read_text() == "a\n1\nc\n"
    assert "  train@2:\n" in Path("dvc.lock").read_text()
    assert ask("store", "train@2", force=False) is None  # up to date
    assert ask("store", "train@2", force=True) is not None


def test_results_outside_dvcs_cache_come_too(clone: Clone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = clone("run")
    (tmp_path / "go").touch()
    assert dvc_main(["repro", "-q", "train"]) == 0
    request = ask("store", "last", force=False)
    assert request is not None and request.inputs == ["models/1.txt", "models/2.txt"]
    clone("machine")
    Path("models").mkdir()
    Path("models/3.txt").write_text("of other values\n")  # stage `last` reads the whole folder
    with ready(request):
        repro("last")
        send("store", "last")
    monkeypatch.chdir(run)
    take("store", "last")
    assert Path("metrics/last.txt").read_text() == "a\n1\nc\n" * 2


def test_values_that_are_not_the_commits_go_along(
    asked: tuple[Request, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, run, machine = asked
    monkeypatch.chdir(run)
    text = Path("params.yaml").read_text().replace("threads: 1 ", "threads: 2 ")
    Path("params.yaml").write_text(text)
    request = ask("store", "train@2", force=False)
    assert request is not None and request.params == text
    monkeypatch.chdir(machine)
    before = Path("params.yaml").read_text()
    with ready(request):
        assert Path("params.yaml").read_text() == text
    assert Path("params.yaml").read_text() == before != text


def test_a_remote_that_fails_half_way_holds_nothing_that_looks_whole(
    asked: tuple[Request, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    request, run, machine = asked
    with ready(request):
        repro("train@2")
        whole = DataCloud._push

        def half(self: DataCloud, objs: object, **options: object) -> object:
            result = whole(self, [], **options)  # type: ignore[arg-type]
            result.failed.update(objs)  # type: ignore[call-overload]
            return result

        monkeypatch.setattr(DataCloud, "_push", half)
        with pytest.raises(PassingError, match="1 files could not be sent to remote store"):
            send("store", "train@2")
        monkeypatch.setattr(DataCloud, "_push", whole)
        monkeypatch.chdir(run)
        with pytest.raises(UserError, match="remote store has no result of train@2"):
            take("store", "train@2")
        monkeypatch.chdir(machine)
        send("store", "train@2")  # another try
    monkeypatch.chdir(run)
    take("store", "train@2")


def test_an_entry_without_its_objects_counts_as_no_result(
    asked: tuple[Request, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request, run, _ = asked
    with ready(request):
        repro("train@2")
        send("store", "train@2")
    monkeypatch.chdir(run)
    shutil.rmtree(tmp_path / "store" / "files")
    again = ask("store", "train@2", force=False)
    assert again == request and (tmp_path / "store" / "files").is_dir()  # its inputs were sent again


def test_results_for_other_inputs_are_not_taken(
    asked: tuple[Request, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    request, run, _ = asked
    with ready(request):
        repro("train@2")
        send("store", "train@2")
    monkeypatch.chdir(run)
    for _ in range(2):  # where dvc.lock has no result, and where it has one for the inputs as they were
        Path("code.txt").write_text("edited meanwhile\n")
        with pytest.raises(UserError, match="an input was edited while a machine computed it"):
            take("store", "train@2")
        assert ask("store", "train@2", force=False) is not None
        assert not list(run.parent.glob("here2-*"))[1:]  # asking runs nothing
        Path("code.txt").write_text("c\n")
        take("store", "train@2")


def test_an_input_that_the_remote_has_lost_is_said(asked: tuple[Request, Path, Path], tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "store")
    with pytest.raises(UserError, match="remote store"), ready(asked[0]):
        pass
