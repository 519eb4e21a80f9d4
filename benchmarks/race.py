"""Runs workers in turn, one iteration each a round, so that all of them meet the same moods of the machine."""

import json
import os
import statistics
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.setting import Setting

ROOT = Path(__file__).parents[1]
Report = dict[str, Any]
Told = Callable[[str, Mapping[str, list[Report]]], None]  # takes a setting that has had its turn, and all counted turns


def nobody(name: str, reports: Mapping[str, list[Report]]) -> None:
    """Is told of a turn and does nothing."""


class Worker:
    """A process that runs one iteration each time it is told to."""

    def __init__(self, setting: Setting, python: str) -> None:
        self.setting = setting
        environment = os.environ | {
            "OMP_NUM_THREADS": str(setting.threads),
            "OMP_WAIT_POLICY": "PASSIVE",
            "PYTHONPATH": str(ROOT),
            "PYTHONWARNINGS": "ignore",
        }
        self.process = subprocess.Popen(
            [python, "-m", f"benchmarks.{setting.side}", setting.text()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            cwd=ROOT,
            text=True,
        )

    def ready(self) -> None:
        """Waits until the models are loaded."""
        self._answer()

    def turn(self) -> Report:
        """Runs one iteration and returns its numbers."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return self._answer()

    def end(self) -> None:
        """Lets the process go."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def _answer(self) -> Report:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(
                f"worker {self.setting.name} ended with code {self.process.wait()}; run it by hand: "
                f"python -m benchmarks.{self.setting.side} '{self.setting.text()}'"
            )
        return json.loads(line)


def race(
    settings: Sequence[Setting], pythons: dict[str, str], warmup: int, rounds: int, told: Told = nobody
) -> dict[str, Report]:
    """Runs all settings in turn.

    Args:
        settings: of distinct names.
        pythons: the interpreter of each side.
        warmup: rounds that do not count.
        rounds: rounds that count.
        told: is told of each turn.
    Returns: for each name its setting and what `summary` makes of its rounds.
    """
    workers = [Worker(setting, pythons[setting.side]) for setting in settings]
    try:
        for worker in workers:
            worker.ready()
        reports: dict[str, list[Report]] = {setting.name: [] for setting in settings}
        for index in range(warmup + rounds):
            for worker in workers:
                report = worker.turn()
                if index >= warmup:
                    reports[worker.setting.name].append(report)
                told(worker.setting.name, reports)
    finally:
        for worker in workers:
            worker.end()
    return {setting.name: _described(setting) | summary(reports[setting.name]) for setting in settings}


def _described(setting: Setting) -> Report:
    return {"setting": {name: value for name, value in asdict(setting).items() if name != "folder"}}


def summary(reports: list[Report]) -> Report:
    """Median, quartiles and raw seconds an iteration, medians of the phases, and the peak of memory."""
    seconds = [report["seconds"] for report in reports]
    phases = {name: statistics.median(report["phases"][name] for report in reports) for name in reports[0]["phases"]}
    quartiles = statistics.quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else seconds * 3
    return {
        "median": statistics.median(seconds),
        "quartiles": [quartiles[0], quartiles[2]],
        "seconds": seconds,
        "cpu_seconds": [report["cpu_seconds"] for report in reports],
        "phases": phases,
        "baseline_bytes": reports[-1]["baseline_bytes"],
        "peak_above_baseline_bytes": max(report["above_bytes"] for report in reports),
    }
