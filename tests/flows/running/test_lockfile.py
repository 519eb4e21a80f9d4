import subprocess
import sys
from pathlib import Path

import pytest

from flows.running.lockfile import names_in_lock, order_lock

ENTRIES = {
    name: f"  {name}:\n    cmd: echo {name}\n    outs:\n    - path: {name}.txt\n      md5: 00\n"
    for name in ("a", "b@x-1", "c")
}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def text(*names: str) -> str:
    return "schema: '2.0'\nstages:\n" + "".join(ENTRIES[name] for name in names)


@pytest.mark.parametrize(
    ("found", "before", "order", "after"),
    [
        (["c", "a", "b@x-1"], [], ["a", "b@x-1", "c"], ["a", "b@x-1", "c"]),
        (["c", "b@x-1", "a"], ["c"], ["a", "b@x-1", "c"], ["c", "a", "b@x-1"]),  # what was there stays where it was
        (["c", "a"], [], ["a"], ["a", "c"]),  # of a stage that is no longer there
    ],
)
def test_new_entries_come_in_dvcs_order(
    found: list[str], before: list[str], order: list[str], after: list[str]
) -> None:
    Path("dvc.lock").write_text(text(*found))
    assert names_in_lock() == found
    order_lock(before, order)
    assert Path("dvc.lock").read_text() == text(*after)


@pytest.mark.parametrize(
    "other",
    [
        "datasets:\n- name: x\n",
        "stages:\n",
        "",
        "schema: '3.0'\nstages:\n  b: {}\n  a: {}\n",
        "schema: '2.0'\nstages:\n  b: {}\n  a: {}\ndatasets: []\n",
    ],
)
def test_a_file_of_another_form_is_left_alone(other: str) -> None:
    Path("dvc.lock").write_text(other)
    order_lock([], ["a", "b"])
    assert Path("dvc.lock").read_text() == other and names_in_lock() == []


def test_no_file_is_fine() -> None:
    order_lock([], ["a"])
    assert names_in_lock() == [] and not Path("dvc.lock").exists()


def test_the_form_is_dvcs() -> None:
    Path("dvc.yaml").write_text(
        "stages:\n  b:\n    cmd: echo b > b\n    outs: [b]\n  a:\n    cmd: echo a > a\n    outs: [a]\n"
    )
    for command in (["init", "--no-scm", "-q"], ["repro", "-q", "-s", "a"], ["repro", "-q", "-s", "b"]):
        subprocess.run([sys.executable, "-m", "dvc", *command], check=True)
    assert names_in_lock() == ["a", "b"]
    order_lock([], ["b", "a"])
    assert names_in_lock() == ["b", "a"]
    Path("dvc.lock").rename("ours")
    subprocess.run([sys.executable, "-m", "dvc", "repro", "-q", "--force"], check=True)
    assert Path("dvc.lock").read_bytes() == Path("ours").read_bytes()
