"""What stages depend on of the code: nothing that only speaks."""

from pathlib import Path

import pytest

from rarlhf.config.errors import UserError
from tasks.running.code import FOLDER, refuse_edited, silent, write_silent

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
        ('    """The root."""\n', ""),
        ('    run.log("taking the root")\n', ""),
        ("import math\n", 'import math\n\n_HINT = "a hint"\n'),
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
        ("import math\n", 'import math\n\nHINT = "others may read it"\n'),
        ("import math\n", "import math\n\n_HINT = 3\n"),
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


def test_a_private_text_that_something_reads_counts() -> None:
    text = '_KIND = "a b"\n\n\ndef kind():\n    {}\n'
    read, raised = text.format("return _KIND"), text.format("raise ValueError(_KIND)")
    assert silent(read) != silent(read.replace("a b", "c d"))
    assert silent(raised) == silent(raised.replace("a b", "c d"))


def test_a_body_of_texts_alone_stays_a_body() -> None:
    compile(silent('class A(Exception):\n    """A."""\n\n\ndef f(run):\n    run.say("x")\n'), "module", "exec")


def test_templates_are_taken_as_they_are_and_compiled_and_editors_files_left_out(tmp_path: Path) -> None:
    room = tmp_path / "code" / "room"
    (room / "__pycache__").mkdir(parents=True)
    (room / "__pycache__" / "a.pyc").write_bytes(b"\xff")
    (room / "a.py").write_text(MODULE)
    (room / "a.j2").write_text("Dear {{ name }}\n")
    (room / ".a.py.swp").write_bytes(b"\xff")
    (room / ".#a.py").symlink_to("nobody@nowhere")
    (room / "a.py~").write_text("def half(")
    write_silent(tmp_path / "code", tmp_path / "out")
    files = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert files == {"room/a.py", "room/a.j2"}
    assert (tmp_path / "out/room/a.j2").read_text() == "Dear {{ name }}\n"
    assert (tmp_path / "out/room/a.py").read_text() == silent(MODULE)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"def half(", r"code/a.py, line 1: .*; mend the code"), (b"\xff = 1", r"code/a.py cannot be read \(.*utf-8")],
)
def test_code_that_is_none_is_told_by_its_file(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "a.py").write_bytes(content)
    with pytest.raises(UserError, match=message):
        write_silent(tmp_path / "code", tmp_path / "out")


def test_code_that_is_not_the_copied_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        Path("rarlhf", name).mkdir(parents=True)
        Path("rarlhf", name, "x.py").write_text(MODULE)
    write_silent(Path("rarlhf"), FOLDER / "rarlhf")
    room, file = str(FOLDER / "rarlhf" / "a"), str(FOLDER / "rarlhf" / "a" / "x.py")
    refuse_edited([room, file, "data/raw"])
    Path("rarlhf/a/x.py").write_text(MODULE.replace("The root", "A root"))
    refuse_edited([room, file])
    Path("rarlhf/b/x.py").write_text("x = 1\n")
    refuse_edited([room, file])
    for dependency in (room, file):
        Path("rarlhf/a/x.py").write_text(MODULE.replace("x < 0", "x <= 0"))
        with pytest.raises(UserError, match="rarlhf/a/x.py was edited after stage code had copied it; run `dvc repro"):
            refuse_edited([dependency])
        Path("rarlhf/a/x.py").write_text(MODULE)
    Path("rarlhf/a/y.py").write_text("y = 1\n")
    with pytest.raises(UserError, match="rarlhf/a/y.py was edited"):
        refuse_edited([room])
