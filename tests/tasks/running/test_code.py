"""What stages depend on of the code: nothing that only speaks."""

from pathlib import Path

import pytest

from tasks.running.code import silent, write_silent

MODULE = '''"""A module."""

import math


def root(x: float, run) -> float:
    """The root."""
    if x < 0:
        raise ValueError(f"{x} is below 0")  # no root
    run.log("taking the root")
    return math.sqrt(x)
'''


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"""A module."""', '"""Another sentence."""'),
        ('"""The root."""', '"""Its root.\n\n    Raises: ValueError below 0.\n    """'),
        ("  # no root", ""),
        ('f"{x} is below 0"', '"give a number that is not negative"'),
        ('run.log("taking the root")', 'run.log(f"taking the root of {x}")'),
    ],
)
def test_a_reworded_text_leaves_the_code_as_it_is(old: str, new: str) -> None:
    changed = MODULE.replace(old, new)
    assert changed != MODULE
    assert silent(changed) == silent(MODULE)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("x < 0", "x <= 0"),
        ("math.sqrt(x)", "math.cbrt(x)"),
        ("ValueError", "TypeError"),
        ("x: float, run", "x: float, run, more=1"),
    ],
)
def test_any_other_change_is_seen(old: str, new: str) -> None:
    changed = MODULE.replace(old, new)
    assert changed != MODULE
    assert silent(changed) != silent(MODULE)


def test_what_remains_still_runs() -> None:
    names: dict[str, object] = {}
    exec(compile(silent(MODULE), "module", "exec"), names)
    assert names["root"](4.0, None) == 2.0  # type: ignore[operator]
    with pytest.raises(ValueError, match=r"^$"):
        names["root"](-1.0, None)  # type: ignore[operator]


def test_templates_are_taken_as_they_are_and_compiled_files_left_out(tmp_path: Path) -> None:
    room = tmp_path / "code" / "room"
    (room / "__pycache__").mkdir(parents=True)
    (room / "__pycache__" / "a.pyc").write_bytes(b"\xff")
    (room / "a.py").write_text(MODULE)
    (room / "a.j2").write_text("Dear {{ name }}\n")
    write_silent(tmp_path / "code", tmp_path / "out")
    files = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert files == {"room/a.py", "room/a.j2"}
    assert (tmp_path / "out/room/a.j2").read_text() == "Dear {{ name }}\n"
    assert (tmp_path / "out/room/a.py").read_text() == silent(MODULE)
