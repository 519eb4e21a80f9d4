from pathlib import Path

import pytest

from tasks.running.outputs import PARTIAL, Outputs, remove


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_nothing_appears_before_commit_and_all_of_it_after() -> None:
    outputs = Outputs()
    with outputs.write(Path("models/a")) as folder, outputs.write(Path("curves/a.csv")) as file:
        (folder / "weights").write_text("w")
        file.write_text("step\n")
    assert not Path("models").exists() and not Path("curves").exists()
    outputs.commit()
    assert Path("models/a/weights").read_text() == "w"
    assert Path("curves/a.csv").read_text() == "step\n"
    assert not PARTIAL.exists()


def test_old_content_is_replaced_as_a_whole() -> None:
    Path("models/a").mkdir(parents=True)
    Path("models/a/stale").write_text("old")
    Path("file.csv").write_text("old")
    outputs = Outputs()
    with outputs.write(Path("models/a")) as folder, outputs.write(Path("file.csv")) as file:
        (folder / "weights").write_text("new")
        file.write_text("new")
    assert Path("models/a/stale").exists() and Path("file.csv").read_text() == "old"
    outputs.commit()
    assert [path.name for path in Path("models/a").iterdir()] == ["weights"]
    assert Path("file.csv").read_text() == "new"


def test_discarded_outputs_leave_no_trace() -> None:
    Path("out").mkdir()
    Path("out/kept").write_text("old")
    outputs = Outputs()
    with outputs.write(Path("out")) as folder:
        (folder / "half").write_text("x")
    outputs.discard()
    outputs.commit()
    assert [path.name for path in Path("out").iterdir()] == ["kept"]
    assert not PARTIAL.exists()


def test_what_a_killed_process_left_is_not_taken_over() -> None:
    with Outputs().write(Path("out")) as folder:
        (folder / "left over").write_text("x")
    outputs = Outputs()
    with outputs.write(Path("out")) as folder:
        assert list(folder.iterdir()) == []
        (folder / "new").write_text("x")
    outputs.commit()
    assert [path.name for path in Path("out").iterdir()] == ["new"]


def test_another_stage_keeps_its_partial_outputs() -> None:
    other = Outputs()
    with other.write(Path("other.txt")) as file:
        file.write_text("other")
    mine = Outputs()
    with mine.write(Path("mine.txt")) as file:
        file.write_text("mine")
    mine.commit()
    other.commit()
    assert Path("other.txt").read_text() == "other"


def test_an_output_that_was_not_written_is_an_error() -> None:
    outputs = Outputs()
    with outputs.write(Path("out.txt")):
        pass
    with pytest.raises(FileNotFoundError, match=r"out\.txt"):
        outputs.commit()


def test_remove_takes_the_link_and_not_what_it_points_to() -> None:
    Path("real").mkdir()
    Path("link").symlink_to("real")
    remove(Path("link"))
    remove(Path("nothing"))
    assert Path("real").is_dir() and not Path("link").exists()
