import sys
from datetime import date
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from rarlhf.config.errors import UserError
from rarlhf.config.load import load_params
from tasks.preset import apply_preset, main, overridden, override, set_value, set_values


def deep() -> list[object]:
    """A list in a list in a list, and so on."""
    value: list[object] = []
    for _ in range(9999):
        value = [value]
    return value


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
    "content", [b"\xff\xfe\x00", b"a: " + b"[" * 1000, b"? [1]\n: 2\n"], ids=["binary", "deep", "list key"]
)
def test_a_file_that_is_none_of_ours_is_kept_unless_forced(content: bytes) -> None:
    Path("params.yaml").write_bytes(content)
    with pytest.raises(UserError, match=r"params\.yaml was edited"):
        apply_preset("files")
    assert Path("params.yaml").read_bytes() == content
    apply_preset("files", force=True)
    assert load_params("presets/tiny.yaml").preset == "tiny" and "files" in Path("params.yaml").read_text()


def test_a_folder_in_its_place_is_kept() -> None:
    Path("params.yaml").unlink()
    Path("params.yaml").mkdir()
    Path("params.yaml/mine.txt").write_text("mine")
    with pytest.raises(UserError, match="is not a plain file: move it away first"):
        apply_preset("files", force=True)
    assert Path("params.yaml/mine.txt").read_text() == "mine"


def test_a_preset_saved_with_other_line_ends_is_no_edited_one() -> None:
    Path("params.yaml").write_bytes(Path("presets/tiny.yaml").read_bytes().replace(b"\n", b"\r\n"))
    assert "is now preset files" in apply_preset("files")


@pytest.mark.parametrize(
    "value",
    [date(2024, 1, 1), 10**5000, {1, 2}, deep(), float("nan"), float("inf"), "x" * 9999],
    ids=["date", "digits", "set", "depth", "nan", "inf", "length"],
)
def test_values_that_no_file_holds_are_refused_in_short(value: object) -> None:
    before = Path("params.yaml").read_text()
    with pytest.raises(UserError, match=r"ppo\.lr = ") as caught:
        override({"ppo.lr": value})
    assert max(map(len, str(caught.value).splitlines())) < 300
    assert Path("params.yaml").read_text() == before


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


def test_a_methods_key_must_be_in_its_entry_first() -> None:
    message = (
        "methods.ppo.ra_rlhf.alpha: in params.yaml, the entry ra_rlhf under methods.ppo has no key alpha; "
        "write alpha with a value into the entry first"
    )
    with pytest.raises(UserError, match=message):
        override({"methods.ppo.ra_rlhf.alpha": 0.1})
    with pytest.raises(UserError, match="methods.ppo.ra_rlhf.alhpa is not a key of params.yaml"):
        override({"methods.ppo.ra_rlhf.alhpa": 0.1})
    path = Path("params.yaml")
    path.write_text(path.read_text().replace("ra_rlhf: {} ", "ra_rlhf: {alpha: 0.2} "))
    override({"methods.ppo.ra_rlhf.alpha": 0.1})
    assert load_params().methods.ppo["ra_rlhf"] == {"alpha": 0.1}


def test_values_over_params_or_a_preset_are_checked_and_not_written() -> None:
    before = Path("params.yaml").read_text()
    assert overridden({"risk.alpha": 0.25}) == before.replace("alpha: 0.3 ", "alpha: 0.25 ")
    assert overridden({}, "tiny") == Path("presets/tiny.yaml").read_text()
    with pytest.raises(UserError, match="no preset nosuch"):
        overridden({}, "nosuch")
    with pytest.raises(UserError, match=r"params.yaml \(left as it was\): 1 problem:\n  risk.alpha = 7"):
        overridden({"risk.alpha": 7})
    assert Path("params.yaml").read_text() == before


def test_set_value_replaces_the_value_alone() -> None:
    text = "a:\n  b: 1   # one\nc: {b: x, d: 'y'}  # two\n"
    assert set_value(text, "a.b", "z: #") == "a:\n  b: \"z: #\"   # one\nc: {b: x, d: 'y'}  # two\n"
    assert set_value(text, "c.b", 2.5) == "a:\n  b: 1   # one\nc: {b: 2.5, d: 'y'}  # two\n"


def test_values_are_set_side_by_side_and_within_one_another() -> None:
    text = "a:\n  b: 1   # one\nc: {b: x, d: 'y'}  # two\n"
    assert set_values(text, {"c.d": 30, "a.b": [1, 2]}) == "a:\n  b: [1, 2]   # one\nc: {b: x, d: 30}  # two\n"
    assert set_values(text, {"c": {"e": 1}, "c.e": 2}) == 'a:\n  b: 1   # one\nc: {"e": 2}  # two\n'
    assert set_values(text, {"c.d": 2, "c": 3, "a.b": 4}) == "a:\n  b: 4   # one\nc: 3  # two\n"
    assert set_values(text, {}) == text
    with pytest.raises(UserError, match=r"a.c is not a key"):
        set_values(text, {"c.d": 2, "a.c": 1})


@pytest.mark.parametrize("items", ["- 1\n- 2\n", "  - 1\n  - 2\n"])
def test_set_value_replaces_a_block_list_wherever_its_items_stand(items: str) -> None:
    assert YAML(typ="safe").load(set_value(f"a:\n{items}b: 3\n", "a", [4])) == {"a": [4], "b": 3}


SHARED = r"the value is shared with another key by YAML anchors \(&, \*, <<\); write it out in each place"
MERGED = r"a merge key \(<<\) takes the section's values from elsewhere; write the value out there"


@pytest.mark.parametrize(
    ("text", "key", "message"),
    [
        ("a: &x 1\nb: *x\n", "a", f"a: in params.yaml, line 1, {SHARED}"),
        ("a: &x 1\nb: *x\n", "b", f"b: in params.yaml, line 2, {SHARED}"),
        ("a: &x\n  c: 1\nb: *x\n", "b.c", f"b.c: in params.yaml, line 2, {SHARED}"),  # would change a.c too
        ("a:\n  c: &x 1\nb: *x\n", "a", f"a: in params.yaml, line 1, {SHARED}"),  # the alias would lose its anchor
        ("a: &x\n  c: 1\nb:\n  <<: *x\n", "a.c", f"a.c: in params.yaml, line 2, {SHARED}"),
        ("a: &x\n  c: 1\nb:\n  <<: *x\n", "b.c", f"b.c: in params.yaml, line 4, {MERGED}"),
        ("a: &x [*x]\n", "a", f"a: in params.yaml, line 1, {SHARED}"),
        ("a: {b, c: 1}\n", "a.b", r"a\.b: in params.yaml, line 1, no value is written; write null there"),
        ("b: 1\na:\n", "a", r"a: in params.yaml, line 2, no value is written; write null there"),
        ("a: *x\n", "a", "params.yaml is not readable as YAML: line 1, column 4: found undefined alias 'x'"),
        ("a: {b: 1\n", "a.b", "params.yaml is not readable as YAML: line 2, column 1: expected ',' or '}'"),
        (f"a: {'[' * 1000}\n", "a", "params.yaml is not readable as YAML: its brackets or sections nest too deep"),
    ],
)
def test_set_value_refuses_what_it_cannot_replace_alone(text: str, key: str, message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}") as caught:
        set_value(text, key, 2)
    assert "\n" not in str(caught.value)


def test_set_value_replaces_beside_anchors_and_in_brackets() -> None:
    merged = "a: &x\n  c: 1\nb:\n  <<: *x\n  d: 2\n"
    assert set_value(merged, "b.d", 3) == merged.replace("d: 2", "d: 3")
    assert set_value("a: &x 1\nb: 2\n", "a", 3) == "a: 3\nb: 2\n"  # an anchor that nothing uses
    assert set_value("{a: 1, b: {c: 2,\n d: ''}}\n", "b.d", 3) == "{a: 1, b: {c: 2,\n d: 3}}\n"


def test_a_key_that_is_there_twice_is_refused_in_one_line() -> None:
    path = Path("params.yaml")
    path.write_text(path.read_text() + "kl: {coef: 1}\n")
    message = r'params.yaml .*is not readable as YAML: line \d+, column 1: found duplicate key "kl"'
    with pytest.raises(UserError, match=message):
        override({"kl.coef": 0.5})


def test_the_command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["preset", "files", "--data", "data/raw"])
    assert main() == 0
    assert capsys.readouterr().out == "params.yaml is now preset files\n"
    monkeypatch.setattr(sys, "argv", ["preset", "nosuch"])
    assert main() == 1
    assert capsys.readouterr().err == "error: no preset nosuch; there are files, tiny\n"
    monkeypatch.setattr(sys, "argv", ["preset"])
    assert main() == 0
    assert capsys.readouterr().out == "params.yaml is valid (preset files)\n"
