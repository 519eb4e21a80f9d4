"""Measures everything and writes it to benchmarks/results/: `python -m benchmarks.run [--peer PYTHON] [--quick]`."""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.compare import FULL, WORK, Effort, compare, ratios_so_far, turns
from benchmarks.growth import FACTORS, grown, growth
from benchmarks.head import head_cost
from benchmarks.models import make_models
from benchmarks.race import ROOT, Report
from benchmarks.rounding import rounding
from benchmarks.setting import Work
from rarlhf.messages.progress import Update, progress

RESULTS = ROOT / "benchmarks" / "results"
QUICK_WORK = Work(layers=2, width=16, heads=2, vocab_size=40, episodes=4, query_tokens=3, response_tokens=5, epochs=2)
QUICK_RUNS = ("ours_fp32_full", "ours_bf16_alpha_0_4")
QUICK = Effort(micro_batches=(), trial_rounds=0, warmup=0, rounds=1, growth_rounds=1, only=QUICK_RUNS)
PACKAGES = ("torch", "transformers", "trl")


def main() -> None:
    """Runs all parts in turn."""
    options = arguments()
    work, effort = (QUICK_WORK, QUICK) if options.quick else (WORK, FULL)
    factors = {} if options.quick else FACTORS
    pythons = {"ours": sys.executable} | ({"peer": options.peer} if options.peer else {})
    about = machine(options.threads, pythons)
    works = grown(work, factors)
    total = turns(effort, len(pythons)) + 2 * len(works) * (1 + effort.growth_rounds) + 2 * (1 + effort.rounds)
    with tempfile.TemporaryDirectory() as name, progress("bench", total) as update:
        folder, told = Path(name), Steps(update)
        make_models(folder / "models", work)
        compared = compare(folder / "models", work, effort, options.threads, pythons, told)
        write(options.out / "compare.json", about | compared)
        micro_batch = compared["runs"]["ours_fp32_full"]["setting"]["micro_batch"]
        by_size = (works, micro_batch, options.threads, effort.growth_rounds, sys.executable)
        write(options.out / "growth.json", about | {"runs": growth(folder / "growth", *by_size, told)})
        cost = head_cost(folder / "head", work, micro_batch, options.threads, effort.rounds, told)
        write(options.out / "head.json", about | cost)
        write(options.out / "rounding.json", about | rounding(folder / "rounding", work, micro_batch, options.threads))


class Steps:
    """Shows how far the turns are, what had the last one, and the ratios so far."""

    def __init__(self, update: Update) -> None:
        self.update = update
        self.done = 0
        self.ratios = ""

    def __call__(self, name: str, reports: Mapping[str, list[Report]]) -> None:
        """Takes one turn."""
        self.done += 1
        self.ratios = ratios_so_far(reports) or self.ratios
        self.update(self.done, "; ".join(filter(None, (name, self.ratios))))


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", help="interpreter of the peer's environment; without it the peer is left out")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, some seconds; for the test")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser.parse_args()


def machine(threads: int, pythons: dict[str, str]) -> dict[str, Any]:
    """What the numbers were taken on."""
    return {
        "processor": processor(),
        "threads": threads,
        "load_before": os.getloadavg()[0],
        "python": platform.python_version(),
        "versions": {side: versions(python) for side, python in pythons.items()},
    }


def processor() -> str:
    """The CPU's name, as the system tells it."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    named = {key.strip(): value.strip() for key, value in fields.items()}
    parts = ("model name", "cpu family", "model")
    return ", ".join(
        f"{part} {named[part]}" if part != "model name" else named[part] for part in parts if part in named
    )


def versions(python: str) -> dict[str, str]:
    """Versions of the packages that matter in the environment of `python`."""
    code = f"import json, importlib.metadata as m; print(json.dumps({{p: m.version(p) for p in {PACKAGES!r}}}))"
    return json.loads(subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout)


def write(path: Path, values: dict[str, Any]) -> None:
    """Writes a results file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {path}", flush=True)


if __name__ == "__main__":
    main()
