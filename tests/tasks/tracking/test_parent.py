from pathlib import Path

import pytest

from tasks.tracking.parent import PIPELINE, STAGES_FILE, parent_run, publish_parent, tell_stage, told_stages


def test_a_stage_finds_the_run_above_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PIPELINE, str(tmp_path))
    publish_parent("abc", tmp_path)
    assert parent_run() == "abc"
    assert [path.name for path in tmp_path.iterdir()] == ["run"]  # no half-written file is left


def test_a_folder_that_is_gone_is_no_trouble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    monkeypatch.setenv(PIPELINE, str(gone))
    publish_parent("abc", gone)
    tell_stage({"stage": "sft"})
    assert (parent_run(), told_stages(gone)) == ("", {})


def test_the_last_whole_line_of_a_stage_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PIPELINE, str(tmp_path))
    for stage, state in (("sft", "RUNNING"), ("rlhf@1", "RUNNING"), ("sft", "FINISHED")):
        tell_stage({"stage": stage, "state": state})
    with (tmp_path / STAGES_FILE).open("a") as stream:
        stream.write('{"stage": "rlhf@1", "sta')
    assert {name: line["state"] for name, line in told_stages(tmp_path).items()} == {
        "sft": "FINISHED",
        "rlhf@1": "RUNNING",
    }
