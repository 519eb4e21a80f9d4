"""What a stage asks of its machine, by MLflow's own monitors: processor, memory, disk, network, accelerator.

MLflow's thread that does the same sends by itself and stops at the first failure; here the numbers go the way of the
others.
"""

import os
import threading
from collections.abc import Callable, Mapping
from typing import Any

INTERVAL_SECONDS = 10.0  # as MLflow's own; MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL says otherwise
Log = Callable[[Mapping[str, float], int], None]


def watch_system(log: Log) -> Callable[[], None] | None:
    """Starts to log `system/...` every few seconds; returns what stops it.

    None where psutil is missing or MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING is false.
    """
    if os.environ.get("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "").lower() in ("false", "0"):
        return None
    try:
        interval = float(os.environ.get("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL") or INTERVAL_SECONDS)
        monitors = _monitors()
    except (ImportError, ValueError):
        return None
    stop = threading.Event()
    thread = threading.Thread(target=_watch, args=(monitors, log, interval, stop), name="system metrics", daemon=True)
    thread.start()
    return stop.set


def _monitors() -> list[Any]:
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    return [CPUMonitor(), DiskMonitor(), NetworkMonitor(), *_accelerator()]


def _accelerator() -> list[Any]:
    """The monitor of the graphics cards; none where there is no card or no library for it."""
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.rocm_monitor import ROCMMonitor

    for kind in (GPUMonitor, ROCMMonitor):
        try:
            return [kind()]
        except Exception:
            continue
    return []


def _watch(monitors: list[Any], log: Log, interval: float, stop: threading.Event) -> None:
    step = 0
    while not stop.wait(interval):
        values: dict[str, float] = {}
        try:
            for monitor in monitors:
                monitor.clear_metrics()
                monitor.collect_metrics()
                values |= monitor.aggregate_metrics()
        except Exception:  # a card that is gone, say: then there is nothing more to watch
            return
        log({f"system/{name}": value for name, value in values.items()}, step)
        step += 1
