"""A params.yaml as a person may leave it: each kind of damage is refused in one short line."""

import errno
import os
from pathlib import Path

import pytest

from rarlhf.config.errors import UserError
from rarlhf.config.load import load_params
from tests.rarlhf.config.edits import REPOSITORY, TINY, write


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no sections; copy a preset over it"),
        ("- 1\n", "holds no sections"),
        ("ppo: {lr: 1\n", "is not readable as YAML: .*line 2"),
        ("seeds: [1]\nseeds: [2]\n", "is not readable as YAML: .*duplicate key"),
        ("\tppo: 1\n", "is not readable as YAML"),
        ("a: 1\n<<<<<<< HEAD\nb: 1\n=======\nb: 2\n>>>>>>> x\n", "line 2 is a mark of a merge conflict .*HEAD"),
        ("a: " + "[" * 1000 + "]" * 1000, "nest too deep"),
        ("a: " + "{a: " * 1000 + "}" * 1000, "nest too deep"),
        ("a: " + "9" * 5000, "is not readable as YAML: Exceeds the limit"),
        ("a: 2024-13-45\n", "is not readable as YAML: month must be in"),
        ('a: !!int ""\n', "is not readable as YAML: "),
        ("a: !!python/object/apply:os.getcwd []\n", "is not readable as YAML: line 1, column 4: could not determine"),
        ("a: \0\n", "is not readable as YAML: .*special characters"),
        ("# " + "x" * 1_000_000, "more than 1,000,000 bytes"),
    ],
)
def test_a_file_that_is_no_params_file_is_refused_in_one_line(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        load_params(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_one_that_is_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    with pytest.raises(UserError, match=r"is missing: copy a preset over it \(cp presets/tiny.yaml"):
        load_params(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"is not readable as YAML: line 1 is not UTF-8 .*save it as UTF-8"):
        load_params(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match="is a folder, not a file"):
        load_params(path)
    path.rmdir()
    os.mkfifo(path)
    with pytest.raises(UserError, match="is not a plain file"):
        load_params(path)


def test_a_file_that_may_not_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> str:  # for root every file is readable
        raise PermissionError(errno.EACCES, "Permission denied")

    path = write(tmp_path, {})
    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(UserError, match=r"params.yaml cannot be read \(Permission denied\): check its permissions"):
        load_params(path)


@pytest.mark.parametrize("text", [f"\ufeff{TINY}", TINY.replace("\n", "\r\n")], ids=["byte order mark", "CRLF"])
def test_how_other_editors_save_does_not_matter(text: str, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes(text.encode())
    assert load_params(path) == load_params(REPOSITORY / "presets" / "tiny.yaml")


def test_a_refusal_stays_short(tmp_path: Path) -> None:
    folds = [f"f{n}: &f{n} [{', '.join([f'*f{n - 1}'] * 9)}]" for n in range(1, 12)]  # 9^11 values, if one wrote them
    path = tmp_path / "params.yaml"
    text = "\n".join(["f0: &f0 x", *folds, TINY.replace("[1, 2, 3]", "*f11")])
    path.write_text(text + "".join(f"key{n}: 1\n" for n in range(100)) + '"\\e[31mred": 1\n')
    with pytest.raises(UserError) as caught:
        load_params(path)
    first, *lines = str(caught.value).splitlines()
    assert first.endswith(": 122 problems:")  # 9 items that are no seeds, 12 + 100 + 1 keys
    assert len(lines) == 31 and lines[-1] == "  and 92 more"
    assert max(map(len, lines)) < 200 and "\033" not in str(caught.value)
