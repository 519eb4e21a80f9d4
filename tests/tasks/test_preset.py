import sys
from pathlib import Path

import pytest

from rarlhf.errors import UserError
from rarlhf.params import load_params
from tasks.preset import apply_preset, main, override, set_value


@pytest.fixture(autouse=True)
def _files_preset(workspace: Path) -> None:
    """A second preset, which reads files, beside `tiny`; and a folder of data."""
    tiny = Path("presets/tiny.yaml").read_text()
    files = tiny.replace("preset: tiny ", "preset: files ").replace("source: generator ", "source: file ")
    Path("presets/files.yaml").write_text(files)


def test_the_preset_is_copied_as_it_is() -> None:
    assert "is now preset files" in apply_preset("files")
    assert Path("params.yaml").read_text() == Path("presets/files.yaml").read_text()


def test_a_missing_params_file_is_made() -> None:
    Path("params.yaml").unlink()
    apply_preset("tiny")
    assert load_params().preset == "tiny"


def test_the_data_path_alone_is_set_and_every_comment_stays() -> None:
    apply_preset("files", "data/raw")
    before, after = (Path(name).read_text().splitlines() for name in ("presets/files.yaml", "params.yaml"))
    changed = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    assert [old.replace("null ", '"data/raw" ', 1) for old, _ in changed] == [new for _, new in changed]
    assert len(changed) == 1
    assert load_params().data.path == "data/raw"


def test_the_same_again_changes_nothing() -> None:
    apply_preset("files", "data/raw")
    stamp = Path("params.yaml").stat().st_mtime_ns
    assert "already" in apply_preset("files", "data/raw")
    assert Path("params.yaml").stat().st_mtime_ns == stamp


def test_another_preset_or_data_path_replaces_an_unedited_one() -> None:
    apply_preset("files", "data/raw")
    apply_preset("files", "data")
    assert load_params().data.path == "data"
    apply_preset("tiny")
    assert load_params().preset == "tiny"


@pytest.mark.parametrize("edited", ["alpha: 0.31", "alpha: [", "nothing"])
def test_an_edited_file_is_kept_unless_forced(edited: str) -> None:
    text = edited if edited == "nothing" else Path("params.yaml").read_text().replace("alpha: 0.3", edited)
    Path("params.yaml").write_text(text)
    with pytest.raises(UserError, match=r"params\.yaml was edited"):
        apply_preset("files")
    assert Path("params.yaml").read_text() == text
    apply_preset("files", force=True)
    assert Path("params.yaml").read_text() == Path("presets/files.yaml").read_text()


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("nosuch", None, "no preset nosuch; there are files, tiny"),
        ("../params", None, "no preset"),
        ("files", "nowhere", "no file or folder nowhere"),
        ("tiny", "data/raw", "leave DATA out"),
    ],
)
def test_bad_wishes_are_refused(name: str, data: str | None, message: str) -> None:
    before = Path("params.yaml").read_text()
    with pytest.raises(UserError, match=message):
        apply_preset(name, data)
    assert Path("params.yaml").read_text() == before


def test_override_sets_values_in_the_text() -> None:
    override({"risk.alpha": 0.2, "seeds": [4, 5], "evaluate.tail_quantile": None, "evaluate.tail_threshold": -1.5})
    params = load_params()
    assert (params.risk.alpha, params.seeds) == (0.2, [4, 5])
    assert (params.evaluate.tail_quantile, params.evaluate.tail_threshold) == (None, -1.5)
    lines = Path("params.yaml").read_text().splitlines()
    assert len(lines) == len(Path("presets/tiny.yaml").read_text().splitlines())


def test_override_is_all_or_nothing() -> None:
    before = Path("params.yaml").read_text()
    with pytest.raises(UserError, match=r"risk\.alpha = 7"):
        override({"kl.coef": 1.0, "risk.alpha": 7})
    with pytest.raises(UserError, match=r"risk\.alhpa is not a key"):
        override({"kl.coef": 1.0, "risk.alhpa": 0.5})
    assert Path("params.yaml").read_text() == before
    assert not Path(".partial").exists()


def test_set_value_replaces_the_value_alone() -> None:
    text = "a:\n  b: 1   # one\nc: {b: x, d: 'y'}  # two\n"
    assert set_value(text, "a.b", "z: #") == "a:\n  b: \"z: #\"   # one\nc: {b: x, d: 'y'}  # two\n"
    assert set_value(text, "c.b", 2.5) == "a:\n  b: 1   # one\nc: {b: 2.5, d: 'y'}  # two\n"


def test_the_command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["preset", "files", "--data", "data/raw"])
    assert main() == 0
    assert capsys.readouterr().out == "params.yaml is now preset files\n"
    monkeypatch.setattr(sys, "argv", ["preset", "nosuch"])
    assert main() == 1
    assert capsys.readouterr().err == "error: no preset nosuch; there are files, tiny\n"
