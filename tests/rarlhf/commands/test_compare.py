"""`rarlhf compare` on its command line: places, methods, formats and files."""

from pathlib import Path

import pytest

from rarlhf.commands.main import main
from tests.rarlhf.commands.test_main import refusal
from tests.rarlhf.evaluation.runs import write_run

Printed = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two runs in the current folder."""
    monkeypatch.chdir(tmp_path)
    for name, shift in (("a", 0.0), ("b", 1.0)):
        write_run(Path(name), {"sft": {1: 0.0, 2: 0.0}, "rlhf": {1: shift, 2: shift + 0.1}})


def printed(capsys: Printed, *words: str) -> str:
    assert main(["compare", *words]) == 0
    return capsys.readouterr().out


def test_methods_that_both_have_are_compared(capsys: Printed) -> None:
    text = printed(capsys, "a", "b")
    assert text.startswith("b less a\nA: a\nB: b\n\nseeds 1, 2; 20 test prompts x 2 samples")
    assert "Equal in A and B, in every seed: SFT." in text
    assert "\n  reward" in text


def test_methods_are_chosen_for_both_or_for_each(capsys: Printed) -> None:
    assert "Equal" not in printed(capsys, "a", "b", "--methods", "rlhf")
    assert "\nRLHF less SFT\n" in printed(capsys, "a:sft", "b:rlhf")
    assert printed(capsys, "a:rlhf", "b").startswith("b less a:rlhf\n")
    assert "\nRLHF\n" in printed(capsys, "a", "b:rlhf")


def test_the_form_is_that_of_the_files_ending_or_as_asked(capsys: Printed) -> None:
    assert printed(capsys, "a", "b", "--out", "c.md") == "c.md: b less a, as markdown\n"
    assert Path("c.md").read_text().startswith("## b less a\n")
    printed(capsys, "a", "b", "--out", "c.HTML")
    assert Path("c.HTML").read_text().startswith("<!DOCTYPE html>")
    printed(capsys, "a", "b", "--out", "c.txt")
    assert Path("c.txt").read_text().startswith("b less a\nA: a\n")
    printed(capsys, "a", "b", "--out", "c.txt", "--format", "markdown")
    assert Path("c.txt").read_text() == Path("c.md").read_text()
    assert printed(capsys, "a", "b", "--format", "html") == Path("c.HTML").read_text()


def test_a_folder_with_a_colon_in_its_name_is_a_folder(capsys: Printed) -> None:
    Path("a").rename("run:rlhf")
    assert "Equal in A and B, in every seed: SFT." in printed(capsys, "run:rlhf", "b")


def test_refusals_have_one_line(capsys: Printed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))  # where the pipeline is
    assert refusal(capsys, "compare a nowhere").startswith("nowhere is no folder, git revision or DVC experiment here")
    assert refusal(capsys, "compare a b:other") == "a has no method other; it has sft, rlhf"
    assert refusal(capsys, "compare a b --out no/c.md") == "--out no/c.md: there is no folder no; make it first"
    with pytest.raises(SystemExit, match="2"):
        main(["compare", "a:rlhf", "b", "--methods", "rlhf"])
    assert "argument --methods: not together with a method of A or B" in capsys.readouterr().err
