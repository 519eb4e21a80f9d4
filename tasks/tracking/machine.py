"""What a stage uses of the machine. MLflow's own watch, which also sees stages of a few seconds.

MLflow looks every 10 s and logs a look when the next one is due, so a stage of 5 s has none, and one of 30 s has two.
This watch looks every 2 s at first and ever less often, up to MLflow's 10 s, so that a training of hours has no more
numbers than before. What was seen last is logged at the end.
"""

import time

import psutil
from mlflow.environment_variables import MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

FIRST_SECONDS, LAST_SECONDS = 2.0, 10.0  # between two looks, in a new run and in an old one
SHARE = 0.05  # of the run's time so far, between two looks


class MachineMonitor(SystemMetricsMonitor):
    """MLflow's monitor with other times. MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL gives a fixed interval instead."""

    def __init__(self, run_id: str, tracking_uri: str) -> None:
        super().__init__(run_id, sampling_interval=FIRST_SECONDS, tracking_uri=tracking_uri)
        self._begun = time.monotonic()
        self._looks = 0

    def collect_metrics(self) -> dict[str, float]:
        """Looks once, and sets when the next look is due. The first one is empty: a share of time needs two looks."""
        self._looks += 1
        if MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL.get() is None:
            self.sampling_interval = interval(time.monotonic() - self._begun)
        if self._looks == 1:
            psutil.cpu_percent()
            return {}
        return dict(super().collect_metrics())

    def finish(self) -> None:
        """Stops, and logs what was not logged yet."""
        super().finish()
        self.collect_metrics()
        self.publish_metrics(self.aggregate_metrics())
        self.mlflow_logger.flush()


def interval(elapsed: float) -> float:
    """Seconds between two looks, so many seconds after the run's start."""
    return min(LAST_SECONDS, max(FIRST_SECONDS, SHARE * elapsed))
