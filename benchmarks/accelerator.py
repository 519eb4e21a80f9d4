"""Whether an accelerator computes what it should, and how fast: `make accelerator`, within ten minutes.

    python -m benchmarks.accelerator             # writes benchmarks/results/accelerator.json, prints tables
    python -m benchmarks.accelerator --small     # tiny shapes, on any device; writes nothing; a CPU does this by itself

Checks run on GPT-2's shape, then iterations of PPO are timed at the paper's model shapes (`benchmarks.gptj`). Weights
are random, so nothing is downloaded. Each part runs in a process of its own under a time limit, and is a row whatever
becomes of it. The exit status is 1 if a check found something or a part could not run.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

RESULTS = Path("benchmarks/results/accelerator.json")
BUDGET = 570.0  # seconds for all parts together
AT_MOST = 240.0  # seconds for one part
PHASES = ("decode", "score", "policy", "reference", "update")
ITERATIONS = 194  # of IMDB-Gen in the authors' code
CHECKS = ("same bytes twice", "agrees with the CPU", "compiled decoding", "float32 head", "kept log-probabilities")
NEEDED = ("torch", "transformers", "peft", "bitsandbytes", "pydantic", "ruamel.yaml")
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate")
# name: case of benchmarks.gptj, decoding, most minutes for all iterations and most GiB on an H100; None: no goal
TIMED: dict[str, tuple[str, str, float | None, float | None]] = {
    "GPT-2, eager decoding": ("gpt2", "eager", None, None),
    "GPT-2, compiled decoding": ("gpt2", "compiled", 2.0, None),
    "GPT-J 6B, LoRA": ("gptj-lora", "compiled", None, None),
    "GPT-J 6B, LoRA + int8": ("gptj-int8", "eager", 60.0, 24.0),
}
MEND = "`make accelerator WHEELS=folder` takes wheels from a folder, and `make test` sets up a whole environment"
Row = dict[str, Any]


def lacking() -> list[str]:
    """Packages that cannot be imported here."""
    return [name for name in NEEDED if _spec(name) is None]


def _spec(name: str) -> object:
    try:
        return importlib.util.find_spec(name)
    except ModuleNotFoundError:  # the package that it is part of
        return None


def machine_facts() -> Row:
    """The device and the versions."""
    import torch

    there = torch.cuda.is_available()
    found = {name: importlib.metadata.version(name) for name in PACKAGES if importlib.util.find_spec(name)}
    return {
        "device": torch.cuda.get_device_name() if there else "CPU",
        "memory_gib": torch.cuda.get_device_properties(0).total_memory / 1024**3 if there else None,
        "driver_cuda": torch.version.cuda if there else None,
        "python": platform.python_version(),
        "versions": found,
    }


def timed_row(name: str, report: Mapping[str, Any], small: bool = False) -> Row:
    """A row of the table of times, with the goals, which are none of tiny shapes."""
    minutes, gib = (None, None) if small else TIMED[name][2:]
    projected = report["seconds_per_iteration"] * ITERATIONS / 60
    goals = [(projected, minutes), (report["peak_gib"], gib)]
    return {
        "name": name,
        "seconds_per_iteration": report["seconds_per_iteration"],
        "seconds_of_phases": report["seconds_of_phases"],
        "projected_minutes": projected,
        "peak_gib": report["peak_gib"],
        "goal": [f"{goal:g} {unit}" for goal, unit in ((minutes, "min"), (gib, "GiB")) if goal is not None],
        "met": all(found <= goal for found, goal in goals if goal is not None),
        "report": dict(report),
    }


class Budget:
    """The time that is left for all parts."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def run(self, module: str, *arguments: str) -> Row:
        """What a part printed as JSON in its last line; `error` in its place if it failed, or ran out of time."""
        left = min(AT_MOST, self._end - time.monotonic())
        if left < 5:
            return {"error": "not run: no time is left"}
        environment = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "HF_HUB_OFFLINE": "1"} | dict(os.environ)
        command = [sys.executable, "-m", module, *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=left, check=False)
        except subprocess.TimeoutExpired:
            return {"error": f"stopped after {left:.0f} s"}
        if done.returncode == 0:
            with suppress(IndexError, ValueError):  # it printed nothing, or something else
                return dict(json.loads(done.stdout.splitlines()[-1]))
        told = [line for line in done.stderr.splitlines() if line.strip()]
        return {"error": told[-1][:300] if told else f"exit status {done.returncode}"}


def run_all(small: bool, say: Callable[[str], None]) -> Row:
    """Every part in turn; each is said as it ends."""
    budget, size = Budget(BUDGET), ["--small"] * small
    result: Row = {"small": small, "machine": machine_facts(), "checks": [], "times": [], "peer": peer()}
    for name in CHECKS:
        row = budget.run("benchmarks.checks", name, *size)
        result["checks"].append({"name": name, **row})
        say(check_line(result["checks"][-1]))
    for name, (case, decode, _, _) in TIMED.items():
        report = budget.run("benchmarks.gptj", "--one", "--cases", case, "--decode", decode, *size)
        result["times"].append({"name": name, **report} if "error" in report else timed_row(name, report, small))
        say(time_line(result["times"][-1]))
    return result


def peer() -> str:
    """Whether TRL's PPO can run beside ours here."""
    places = getattr(importlib.util.find_spec("trl"), "submodule_search_locations", None) or []
    if any(Path(place, "experimental", "ppo").is_dir() for place in places):
        return "TRL's PPO is here: `make bench` runs it beside ours"
    return "TRL's PPO is not installed here, so nothing ran beside ours"


def check_line(row: Row) -> str:
    """One line of a check."""
    if "error" in row:
        return f"  failed  {row['name']}: {row['error']}"
    figures = ", ".join(f"{key} {value:.3g}" for key, value in row["figures"].items())
    return f"  {'good  ' if row['good'] else 'NOT   '}  {row['name']}: {figures} ({row['wanted']})"


def time_line(row: Row) -> str:
    """One line of a timed case."""
    if "error" in row:
        return f"  failed  {row['name']}: {row['error']}"
    text = f"{row['seconds_per_iteration']:.3g} s an iteration, {row['peak_gib']:.2f} GiB"
    return f"  timed   {row['name']}: {text}, {ITERATIONS} iterations in {row['projected_minutes']:.3g} min"


def markdown(result: Row) -> str:
    """Both tables as Markdown, for docs/benchmarks.md."""
    machine = result["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    lines = [f"{machine['device']}; Python {machine['python']}, {versions}.", "", *_check_table(result["checks"]), ""]
    lines += ["| case | s an iteration | decode | score | policy | reference | update | 194 iterations | peak | goal |"]
    lines += ["| --- " + "| ---: " * 9 + "|"]
    return "\n".join(lines + [_time_cells(row) for row in result["times"]] + ["", result["peer"] + "."]) + "\n"


def _check_table(rows: Sequence[Row]) -> list[str]:
    lines = ["| check | found | wanted | |", "| --- | --- | --- | --- |"]
    for row in rows:
        if "error" in row:
            lines.append(f"| {row['name']} | {row['error']} | | failed |")
        else:
            found = ", ".join(f"{key} {value:.3g}" for key, value in row["figures"].items())
            lines.append(f"| {row['name']} | {found} | {row['wanted']} | {'good' if row['good'] else 'not met'} |")
    return lines


def _time_cells(row: Row) -> str:
    if "error" in row:
        return f"| {row['name']} | {row['error']} " + "| " * 8 + "|"
    phases = [f"{row['seconds_of_phases'].get(f'time/{phase}', 0.0):.3g}" for phase in PHASES]
    goal = " and ".join(row["goal"])
    goal = f"{goal}: {'met' if row['met'] else 'not met'}" if goal else ""
    cells = [row["name"], f"{row['seconds_per_iteration']:.3g}", *phases, f"{row['projected_minutes']:.3g} min"]
    return "| " + " | ".join([*cells, f"{row['peak_gib']:.2f} GiB", goal]) + " |"


def sound(result: Row) -> bool:
    """Whether every part ran, and every check found what it wanted. Goals of speed are not asked for."""
    return not any("error" in row for row in result["checks"] + result["times"]) and all(
        row["good"] for row in result["checks"]
    )


def main() -> int:
    """Runs all parts, prints and writes what they found; returns the exit status."""
    parser = argparse.ArgumentParser(description="Checks and times PPO on the accelerator at hand.")
    parser.add_argument("--small", action="store_true", help="tiny shapes; writes nothing")
    options = parser.parse_args()
    if missing := lacking():
        print(f"error: this Python ({sys.executable}) has no {', '.join(missing)}; {MEND}", file=sys.stderr)
        return 1
    device = machine_facts()["device"]
    small = options.small or device == "CPU"
    print(f"device: {device}" + ("; tiny shapes, so times say nothing" if small else ""), flush=True)
    result = run_all(small, lambda line: print(line, flush=True))
    print("\n" + markdown(result))
    if not small:
        RESULTS.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        print(f"written: {RESULTS}; `python -m benchmarks.report` puts it into docs/benchmarks.md")
    return 0 if sound(result) else 1


if __name__ == "__main__":
    sys.exit(main())
