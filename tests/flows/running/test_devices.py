from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier, Lock

import pytest

from flows.running.devices import Shares, accelerators, shares


@pytest.mark.parametrize(
    ("visible", "ids"),
    [("0,1", ["0", "1"]), ("GPU-1a, 3", ["GPU-1a", "3"]), ("", []), ("-1", []), ("2,-1,3", ["2"])],
)
def test_what_cuda_is_allowed_to_see(visible: str, ids: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert accelerators() == ids


@pytest.mark.parametrize(
    ("script", "ids"),
    [
        ("echo 'GPU 0: H200 (UUID: GPU-a)'; echo '  MIG 1g'; echo 'GPU 1: H200 (UUID: GPU-b)'", ["0", "1"]),
        ("echo 'GPU 0: broken'; exit 9", []),
    ],
)
def test_what_the_driver_lists(script: str, ids: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert accelerators() == ids


def test_no_driver_no_accelerator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert accelerators() == []


@pytest.mark.parametrize(
    ("devices", "parallel", "visible"),
    [
        (["0", "1", "2"], None, ["0", "1", "2"]),
        (["0", "1", "2"], 2, ["0,2", "1"]),
        (["0", "1", "2"], 1, ["0,1,2"]),
        (["4", "7"], 3, ["4", "7", "4"]),
    ],
)
def test_accelerators_are_shared_out(devices: list[str], parallel: int | None, visible: list[str]) -> None:
    assert shares(devices, parallel) == [{"CUDA_VISIBLE_DEVICES": ids} for ids in visible]


@pytest.mark.parametrize(("parallel", "count"), [(None, 1), (1, 1), (3, 3)])
def test_on_a_cpu_one_stage_runs_at_a_time_unless_more_are_asked_for(parallel: int | None, count: int) -> None:
    assert shares([], parallel) == [{}] * count


def test_as_many_tasks_run_at_the_same_time_as_there_are_shares() -> None:
    two = Shares([{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}])
    held: list[str] = []
    most, lock, both = [0], Lock(), Barrier(2, timeout=20)

    def work(_: int) -> None:
        with two.one() as share:
            with lock:
                held.append(share["CUDA_VISIBLE_DEVICES"])
                most[0] = max(most[0], len(held))
                assert len(set(held)) == len(held)  # no share is held twice
            both.wait()  # passes only where two tasks run at the same time
            with lock:
                held.remove(share["CUDA_VISIBLE_DEVICES"])

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))
    assert most == [2]


def test_a_task_that_fails_gives_its_share_back() -> None:
    one = Shares([{}])
    with pytest.raises(ValueError, match="x"), one.one():
        raise ValueError("x")
    with one.one() as share:
        assert share == {}
