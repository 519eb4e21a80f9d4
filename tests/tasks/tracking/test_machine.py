from pathlib import Path

import pytest

from tasks.tracking.machine import interval


@pytest.mark.parametrize(
    ("elapsed", "seconds"),
    [(0, 2), (40, 2), (60, 3), (100, 5), (200, 10), (36000, 10)],  # 5 % of the time, from 2 to 10 s
)
def test_looks_become_rarer(elapsed: float, seconds: float) -> None:
    assert interval(elapsed) == pytest.approx(seconds)


def test_a_short_run_has_one_look_of_the_whole_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tasks.tracking.machine import MachineMonitor

    monkeypatch.delenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", raising=False)
    monitor = MachineMonitor("run", f"sqlite:///{tmp_path}/mlflow.db")
    assert monitor.collect_metrics() == {} and monitor.aggregate_metrics() == {}  # the first has nothing to compare to
    monitor.collect_metrics()
    assert monitor.aggregate_metrics().keys() >= {"cpu_utilization_percentage", "system_memory_usage_megabytes"}
    assert monitor.sampling_interval == 2
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "7")
    fixed = MachineMonitor("run", f"sqlite:///{tmp_path}/mlflow.db")
    fixed.collect_metrics()
    assert fixed.sampling_interval == 7
