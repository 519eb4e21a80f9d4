"""What the commands of `rarlhf` have in common: what is refused before anything slow, full disks, clean output."""

import json
import os
import shlex
import subprocess
import sys
from errno import ENOSPC
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from transformers import GPT2Config, GPT2ForSequenceClassification

import rarlhf.commands.merge
from rarlhf.commands.main import main
from rarlhf.config.params import Params
from rarlhf.models.backbone import AdapterModel
from rarlhf.models.loading import load_causal_lm, save_model

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[3]
RUN = """\
import json, sys
from rarlhf.commands.main import main
ended = [main(arguments) for arguments in json.loads(sys.argv[1])]
print(json.dumps([ended, sorted({"torch", "transformers", "peft"} & set(sys.modules))]))
"""


def in_a_process(*commands: str) -> tuple[list[str], str]:
    """Runs commands one after another in a process of its own; returns the lines that it printed, and its stderr."""
    arguments = json.dumps([shlex.split(command) for command in commands])
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{RUN}"
    done = subprocess.run([sys.executable, "-P", "-c", code, arguments], capture_output=True, text=True, check=True)
    return done.stdout.splitlines(), done.stderr


def refusal(capsys: pytest.CaptureFixture[str], command: str, *more: str) -> str:
    assert main([*shlex.split(command), *more]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    return captured.err.removeprefix("error: ").rstrip()


@pytest.fixture
def folder(lm_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a model in `lm`."""
    monkeypatch.chdir(lm_folder.parent)
    return lm_folder.parent


def make_adapter(params: Params, name: str, **stored: object) -> None:
    section = params.model.model_copy(update={"adapter": "lora"} | stored)
    AdapterModel(Path("lm"), section, 1, CPU).save(Path(name))


REFUSED = {
    "generate nowhere a": "there is no folder nowhere; name a model's, such as models/ra_rlhf/1",
    "generate lm/config.json a": "lm/config.json is a file; name the folder that it is in",
    "generate . a": ". holds no model: it has neither config.json nor adapter_config.json; name one of the",
    "generate lm a --base lm": "--base lm: lm is a whole model, which has no base; leave --base out",
    "generate cut a": "cut/config.json cannot be read as JSON",
    "generate lm ''": "prompt 1 is empty; leave it out or write a prompt",
    "score a --reward nowhere": "there is no folder nowhere; name a classifier's",
    "score a --reward lm/config.json": "lm/config.json is a file; name the folder that it is in",
    "score a": "models/reward is no folder of a reward model: it has no config.json; make it",
    "merge nowhere out": "nowhere is not a folder of an adapter: it must hold adapter_config.json and",
    "merge lm lm": "lm is not empty; name a folder that is not there yet",
    "merge lm lm/config.json/out": "lm/config.json/out cannot be made: lm/config.json is a file; name another place",
    "convert lm out": "lm has nothing to convert: it has safetensors already",
    "convert lm/config.json out": "lm/config.json is a file; name the folder that it is in",
    "convert lm out --revision main": "--revision main: lm is a local folder, which has none; leave --revision out",
    "convert nowhere lm": "lm is not empty; name a folder that is not there yet",
}


@pytest.mark.slow
def test_what_files_alone_show_is_refused_before_slow_imports(folder: Path) -> None:
    Path("cut").mkdir()
    Path("cut/config.json").write_text("{")
    (printed,), errors = in_a_process(*REFUSED)
    assert json.loads(printed) == [[1] * len(REFUSED), []]
    for line, message in zip(errors.splitlines(), REFUSED.values(), strict=True):
        assert line.replace(f"{folder}/", "").startswith(f"error: {message}")


@pytest.mark.slow
def test_nothing_but_the_result_is_printed(folder: Path, params: Params) -> None:
    """Libraries advise and warn as they are imported, and as they load and multiply."""
    make_adapter(params, "adapter", quantization="int8")
    torch.save(load_causal_lm("lm")[0].state_dict(), "lm/pytorch_model.bin")
    lm, tokenizer = load_causal_lm("lm")
    config = GPT2Config(**lm.config.to_dict() | {"num_labels": 1})
    save_model(GPT2ForSequenceClassification(config), tokenizer, Path("classifier"))
    printed, errors = in_a_process(
        "generate lm we --max-new-tokens 2",
        "generate adapter we --max-new-tokens 2",
        "score we us --reward classifier",
        "merge adapter merged",
        "convert lm converted",
    )
    assert errors == ""
    assert len(printed) == 7
    assert json.loads(printed[-1])[0] == [0] * 5


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    version = (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition('\nversion = "')[2].partition('"')[0]
    assert capsys.readouterr().out == f"rarlhf {version}\n"


def test_help_for_a_reader_that_went_away_ends_quietly(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", encoding="latin-1") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        assert main(["--help"]) == 141
        assert stdout.encoding == "utf-8"  # and what is written is UTF-8 in every locale, as what is read
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("error", [OSError(ENOSPC, "No space left on device"), SafetensorError("I/O error: No space")])
def test_a_full_disk_is_one_line_and_leaves_nothing(
    error: Exception, folder: Path, params: Params, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_adapter(params, "adapter")
    torch.save(load_causal_lm("lm")[0].state_dict(), "lm/pytorch_model.bin")
    capsys.readouterr()
    there = sorted(Path().iterdir())

    def fill(first: object, second: object, target: Path | None = None, **_: object) -> None:
        place = target or Path(str(second))
        (place / "half" if place.is_dir() else place).write_text("half")
        raise error

    monkeypatch.setattr(rarlhf.commands.merge, "save_model", fill)
    monkeypatch.setattr("safetensors.torch.save_file", fill)
    for command in ("merge adapter out", "convert lm out"):
        said = refusal(capsys, command)
        assert said.startswith("out could not be written (")
        assert "No space" in said
        assert said.endswith("deleted. Free some space there, or name a folder where you may write")
        assert sorted(Path().iterdir()) == there


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_output_that_cannot_be_written_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert main(["generate", "lm", "we", "--max-new-tokens", "2"]) == 1
    assert capsys.readouterr().err == (
        "error: the output cannot be written (No space left on device); check the room and the permissions there\n"
    )


def test_text_that_is_no_text_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = "has bytes or escapes that are no character: write it in UTF-8"
    assert (
        refusal(capsys, "generate lm", "a\udcff") == f"prompt 1 {message}"
    )  # as Python reads a byte that is not UTF-8
    Path("rows.jsonl").write_text('{"prompt": "we", "id": "\\ud800"}\n')
    assert refusal(capsys, "generate lm --file rows.jsonl --json") == f"rows.jsonl line 1 {message}"


def test_options_that_a_function_has_no_use_for_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "presets" / "tiny.yaml").read_text(encoding="utf-8")
    section, mark, rest = text.partition("\nreward:\n")
    rest = rest.replace("source: scratch", "source: python:own:score", 1).replace("watch: []", "watch: [code]", 1)
    Path("params.yaml").write_text(section + mark + rest)
    assert refusal(capsys, "score a --label x --max-length 9").startswith(
        "--label and --max-length: reward.source = 'python:own:score' in params.yaml is a function, which knows no such"
    )


def test_a_folder_without_permission_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: Path(path).name != "lm")  # root may read everything
    assert refusal(capsys, "generate lm a") == "lm cannot be read: permission denied; ask its owner, or copy it"
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert refusal(capsys, "convert lm out") == "out cannot be made: you may not write there; name another place"


def test_closed_streams_are_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As under `<&-` and `>&-`, where Python has no stream at all."""
    with monkeypatch.context() as closed:
        closed.setattr(sys, "stdin", None)
        assert refusal(capsys, "generate lm").startswith("standard input is closed: give a prompt as an argument")
    monkeypatch.setattr(sys, "stdout", None)
    assert main(["generate", "lm", "a"]) == 1
    assert capsys.readouterr().err == "error: standard output is closed, and results are written there\n"
