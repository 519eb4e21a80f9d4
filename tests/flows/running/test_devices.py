import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier, Lock

import pytest

import flows.running.devices
import rarlhf.training.estimate
from flows.running.devices import Shares, accelerators, cores, shares, stage_shares
from rarlhf.config.errors import UserError
from rarlhf.config.load import load_params
from rarlhf.config.params import Params
from rarlhf.training.estimate import stage_memory
from rarlhf.training.memory import GIB

TINY = Path(__file__).parents[3] / "presets" / "tiny.yaml"


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


@pytest.mark.parametrize(
    ("free", "threads", "count"),
    [(100.0, 1, 8), (100.0, 3, 2), (100.0, 16, 1), (4.0, 1, 2), (0.1, 1, 1), (None, 1, 1)],
)
def test_on_a_cpu_as_many_stages_run_as_have_cores_and_memory(
    free: float | None, threads: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = load_params(TINY)
    params = params.model_copy(update={"runtime": params.runtime.model_copy(update={"threads": threads})})
    needed = stage_memory(params)
    assert needed is not None and 4 / 3 * GIB < needed < 2 * GIB
    monkeypatch.setattr(flows.running.devices, "cores", lambda: 8)
    monkeypatch.setattr(rarlhf.training.estimate, "available_memory", lambda: free and free * GIB)
    assert stage_shares(params) == [{}] * count
    assert stage_shares(params, 3) == [{}] * 3  # asked for, they run


def test_an_unknown_model_runs_one_stage_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(_: Params) -> None:
        raise UserError("no such model")

    monkeypatch.setattr(flows.running.devices, "cores", lambda: 8)
    for size in (unknown, lambda _: None):
        monkeypatch.setattr(rarlhf.training.estimate, "stage_memory", size)
        assert stage_shares(load_params(TINY)) == [{}]


def test_one_stage_for_each_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    params = load_params(TINY)
    params = params.model_copy(update={"runtime": params.runtime.model_copy(update={"device": "auto"})})
    monkeypatch.setattr(flows.running.devices, "cores", lambda: 8)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    assert stage_shares(params) == [{"CUDA_VISIBLE_DEVICES": "3"}]


@pytest.mark.parametrize(
    ("quota", "count"), [("max 100000", 4), ("250000 100000", 2), ("50000 100000", 1), ("900000 100000", 4), ("", 4)]
)
def test_a_containers_share_of_the_cores_counts(
    quota: str, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flows.running.devices, "QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    assert cores() == 4
    (tmp_path / "cpu.max").write_text(f"{quota}\n")
    assert cores() == count


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
