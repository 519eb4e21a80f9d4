"""Python functions as scorers: what they may return, whatever is wrong with them in one line, and when they changed."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rarlhf.config.errors import UserError
from rarlhf.config.function_names import function_name
from rarlhf.rewards.functions import PythonScorer, code_fingerprint, load_function

CODE = """\
import numpy as np
import torch

seen = []
letters = 3


def length(texts):
    seen.append(len(texts))
    return [float(len(text)) for text in texts]


def array(texts):
    return np.array([len(text) for text in texts], dtype=np.float32)


def tensor(texts):
    return torch.tensor([float(len(text)) for text in texts])


def flags(texts):
    return [text == "bb" for text in texts]


def short(texts):
    return [1.0]


def nothing(texts):
    return None


def number(texts):
    return 1.0


def strings(texts):
    return [str(len(text)) for text in texts]


def columns(texts):
    return [[1.0] for _ in texts]


def undefined(texts):
    return [float("nan") if text == "bb" else 1.0 for text in texts]


def failing(texts):
    return [1 / (len(text) - 2) for text in texts]


def tampering(texts):
    return [float(len(texts.pop(0))) for _ in range(len(texts))]
"""
TEXTS = ["a", "bb", "ccc"]


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A current folder with a user's module `own_scorer`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # else an edit within a second goes unseen
    (tmp_path / "own_scorer.py").write_text(CODE)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith(("own_", "broken")):
            del sys.modules[name]


def refused(source: str) -> str:
    with pytest.raises(UserError) as caught:
        PythonScorer(source, 8)(TEXTS)
    message = str(caught.value)
    assert message.startswith(source)
    assert "\n" not in message
    return message.removeprefix(source)


def test_names() -> None:
    assert function_name("python:own.scorer:length") == ("own.scorer", "length")
    for wrong in ("python:own", "python:own.scorer.length", "python::f", "python:own:f:g", "python:a/b:f", "own:f"):
        assert function_name(wrong) is None


@pytest.mark.parametrize("name", ["length", "array", "tensor", "tampering"])
def test_lists_arrays_and_tensors_of_numbers_are_scores(name: str, own: Path) -> None:
    assert PythonScorer(f"python:own_scorer:{name}", 8)(TEXTS) == [1.0, 2.0, 3.0]
    assert TEXTS == ["a", "bb", "ccc"]


def test_truth_values_are_numbers(own: Path) -> None:
    assert PythonScorer("python:own_scorer:flags", 8)(TEXTS) == [0.0, 1.0, 0.0]


def test_texts_come_in_order_and_in_batches(own: Path) -> None:
    assert PythonScorer("python:own_scorer:length", 2)(TEXTS) == [1.0, 2.0, 3.0]
    assert sys.modules["own_scorer"].seen == [2, 1]
    assert PythonScorer("python:own_scorer:length", 2)([]) == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("short", " returned 1 values for 3 texts: one each is needed"),
        ("nothing", " returned None (NoneType), not a list of floats"),
        ("number", " returned 1.0 (float), not a list of floats"),
        ("strings", " gave '1' (str) for the text 'a': a finite number is needed"),
        ("columns", " gave [1.0] (list) for the text 'a': a finite number is needed"),
        ("undefined", " gave nan (float) for the text 'bb': a finite number is needed"),
        ("failing", " raised ZeroDivisionError: division by zero (own_scorer.py line 50)"),
        ("absent", ": {own}/own_scorer.py has no absent"),
        ("letters", ": {own}/own_scorer.py holds 3 (int), not a function, as letters"),
    ],
)
def test_what_is_no_score_is_one_line(name: str, message: str, own: Path) -> None:
    assert refused(f"python:own_scorer:{name}") == message.format(own=own)


def test_what_cannot_be_imported_is_one_line(own: Path) -> None:
    (own / "broken.py").write_text("x = 1\nimport own_absent_library\n")
    (own / "broken_package").mkdir()
    (own / "broken_package" / "__init__.py").write_text("1 / 0\n")
    (own / "broken_syntax.py").write_text("def f(:\n")
    assert refused("python:own_nowhere.at_all:f").startswith(
        f": there is no module own_nowhere.at_all, neither in {own} nor installed; put own_nowhere/at_all.py there"
    )
    expected = ": importing broken raised ModuleNotFoundError: No module named 'own_absent_library' (broken.py line 2)"
    assert refused("python:broken:f") == expected
    assert "raised ZeroDivisionError: division by zero (__init__.py line 1)" in refused("python:broken_package.a:f")
    assert "raised SyntaxError: invalid syntax" in refused("python:broken_syntax:f")
    with pytest.raises(UserError, match=r"'python:own' names no function: write python:package\.module:function"):
        load_function("python:own")


def test_the_fingerprint_is_of_the_code_and_names_no_machine_path(own: Path) -> None:
    before = code_fingerprint("python:own_scorer:length")
    assert before["version"] is None
    assert str(own) not in str(before)
    assert "own_scorer" not in sys.modules, "looking at the code does not run it"
    assert code_fingerprint("python:own_scorer:array")["sha256"] == before["sha256"]
    (own / "own_scorer.py").write_text(CODE + "\n# edited\n")
    assert code_fingerprint("python:own_scorer:length")["sha256"] != before["sha256"]


@pytest.mark.slow
def test_the_fingerprint_of_a_package_is_of_all_its_modules(own: Path) -> None:
    package = own / "own_package" / "deep"
    package.mkdir(parents=True)
    for folder in (package, package.parent):
        (folder / "__init__.py").touch()
        (folder / "words.py").write_text("good = ['fine']\n")
    (package / "score.py").write_text(CODE)
    (own / "own_unrelated.py").touch()
    seen = {code_fingerprint("python:own_package.deep.score:length")["sha256"]}
    for edited in ("own_unrelated.py", "own_package/words.py", "own_package/deep/words.py"):
        (own / edited).write_text("good = ['fine', 'decent']\n")
        seen.add(code_fingerprint("python:own_package.deep.score:length")["sha256"])
    assert len(seen) == 3
    inside = {code_fingerprint(f"python:own_package{name}:f")["sha256"] for name in ("", ".deep", ".words")}
    assert len(inside) == 1


def test_an_installed_package_has_its_version() -> None:
    assert code_fingerprint("python:jinja2.filters:do_upper")["version"].startswith("3.")
