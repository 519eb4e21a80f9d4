"""docs/use.md and docs/lora.md: every command and program on them, on tiny models."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from rarlhf.commands.main import main
from tests.docs.conftest import small, train, train_sft
from tests.docs.pages import agrees, blocks, commands, run_alone, words
from tests.tasks.test_lora_stages import write_inputs

pytestmark = pytest.mark.slow
Shell = Callable[[str], str]


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Shell:
    """Runs one command of a page and returns what it printed."""

    def run(command: str) -> str:
        parts, target = words(command)
        if parts[0] == "cp":
            options = [part for part in parts[1:] if not part.startswith("-")]
            copy = shutil.copytree if "-r" in parts else shutil.copyfile
            copy(*options)  # type: ignore[operator]
            return ""
        assert parts[0] == "rarlhf"
        assert main(parts[1:]) == 0, capsys.readouterr().err
        printed = capsys.readouterr().out
        if target:
            target.write_text(printed, encoding="utf-8")
        return "" if target else printed

    return run


@pytest.mark.parametrize("page", ["use.md", "../README.md"])
def test_the_commands_to_use_a_model_do_what_the_page_shows(page: str, workspace: Path, shell: Shell) -> None:
    rows = [{"prompt": prompt, "id": prompt.upper()} for prompt in ("we saw", "we liked the")]
    Path("prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for command, shown in commands(page):
        printed = shell(command)
        if command.startswith("rarlhf generate"):
            prompt = re.search(r'"(.*)"', command)
            assert [line[: len(prompt[1])] if prompt else line for line in printed.splitlines()] == (
                [prompt[1]] * len(shown) if prompt else []
            )  # the words are those of another model
        else:
            assert agrees(shown, printed), (command, printed)
    if page != "use.md":
        return
    scored = [json.loads(line) for line in Path("scored.jsonl").read_text().splitlines()]
    assert [row["id"] for row in scored] == ["WE SAW", "WE LIKED THE"]
    assert all(isinstance(row["score"], float) and row["tokens"] <= 12 for row in scored)
    card = Path("my-model/README.md").read_text()
    assert "Paired differences" in card


def test_whole_weights_load_anywhere_without_this_project(workspace: Path, tmp_path: Path) -> None:
    (code,) = blocks("use.md", "python")
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree("models/ra_rlhf/1", elsewhere / "copy-of-ra_rlhf-1")
    shutil.rmtree(workspace / "models")
    card = Path("reports/model_cards/ra_rlhf.md").read_text(encoding="utf-8")
    (cards,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    cards = cards.replace("FOLDER", "copy-of-ra_rlhf-1")
    printed = run_alone(f"{code}\ndel model\n{cards}\nprint(type(model).__name__)", elsewhere)
    assert printed.startswith("we liked the")
    assert printed.endswith("\nGPT2LMHeadModel\n")


@pytest.fixture
def gptj(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which an adapter on a GPT-J-shaped model in 8 bits was trained; the process stands in it."""
    folder = tmp_path / "gptj"
    folder.mkdir()
    monkeypatch.chdir(folder)
    params = small("int8")
    write_inputs("gptj", params)
    train_sft(params)
    train(params, "ra_rlhf", 1)
    return folder


def test_an_adapter_of_gptj_is_used_as_its_page_shows(gptj: Path, shell: Shell, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree("models/base", elsewhere / "copy-of-base")
    shutil.copytree("models/ra_rlhf/1", elsewhere / "copy-of-ra_rlhf-1")
    near, far = blocks("lora.md", "python")
    (first, _), *others = commands("lora.md")
    assert first == "make repro PRESET=imdb-gptj"
    for command, shown in others:
        printed = shell(command.replace("The acting in this film", "we"))
        assert agrees(shown, printed) if shown else len(printed.splitlines()) == 2
    moved = "import os, shutil\nos.chdir('../elsewhere')\nshutil.rmtree('../gptj/models')\n"
    assert run_alone(near + moved + far, gptj).startswith("we liked the")
