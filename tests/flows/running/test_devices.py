from pathlib import Path

import pytest

from flows.running.devices import accelerators, shares


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
