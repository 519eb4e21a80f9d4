"""`make accelerator`, on whatever device there is."""

import json
import subprocess
import sys
from math import isfinite
from typing import Any
from unittest.mock import patch

import pytest

import benchmarks.checks
from benchmarks import accelerator
from benchmarks.accelerator import BUDGET, TIMED, Budget, check_line, lacking, markdown, sound, time_line, timed_row
from benchmarks.gptj import CASES
from rarlhf.models import policy

pytestmark = pytest.mark.usefixtures("restored")
PHASES = {f"time/{phase}": 0.1 for phase in accelerator.PHASES}


def report(seconds: float, gib: float) -> dict[str, Any]:
    return {"seconds_per_iteration": seconds, "seconds_of_phases": PHASES, "peak_gib": gib}


def test_names_are_those_of_checks_and_cases() -> None:
    assert tuple(benchmarks.checks.CHECKS) == accelerator.CHECKS
    assert {case for case, _, _, _ in TIMED.values()} <= set(CASES)
    assert lacking() == []


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the compiler's own
@pytest.mark.parametrize("name", accelerator.CHECKS)
def test_checks_find_nothing_wrong_here(name: str) -> None:
    row = benchmarks.checks.check(name, small=True)
    assert row["good"] and all(isfinite(value) for value in row["figures"].values())
    json.dumps(row)


def test_a_rounded_head_is_found() -> None:
    def rounded(lm: Any, states: Any) -> Any:
        return lm.get_output_embeddings()(states)

    with patch.object(benchmarks.checks, "logits_of", rounded):
        row = benchmarks.checks.check("float32 head", small=True)
    assert not row["good"] and row["figures"]["largest relative error"] > 1e-4


def test_another_distribution_is_found() -> None:
    once = policy.Policy.measure

    def moved(self: policy.Policy, episodes: Any) -> Any:
        found = once(self, episodes)
        return found._replace(logprobs=found.logprobs + 0.01)

    with patch.object(policy.Policy, "measure", moved):
        assert not benchmarks.checks.check("kept log-probabilities", small=True)["good"]


def test_goals_and_tables() -> None:
    fast, slow = (timed_row("GPT-2, compiled decoding", report(seconds, 3.0)) for seconds in (0.5, 0.7))
    assert (fast["met"], slow["met"]) == (True, False)  # 1.6 and 2.3 minutes
    roomy, large = (timed_row("GPT-J 6B, LoRA + int8", report(10.0, gib)) for gib in (23.0, 25.0))
    assert (roomy["met"], large["met"]) == (True, False)
    assert timed_row("GPT-J 6B, LoRA + int8", report(10.0, 25.0), small=True)["goal"] == []
    good = {"name": "float32 head", "figures": {"largest relative error": 2e-7}, "wanted": "below 1e-5", "good": True}
    failed = {"name": "same bytes twice", "error": "out of memory"}
    result = {"machine": accelerator.machine_facts(), "checks": [good], "times": [fast, large], "peer": "none"}
    page = markdown(result)
    assert "| float32 head | largest relative error 2e-07 | below 1e-5 | good |" in page
    assert "2 min: met |" in page and "60 min and 24 GiB: not met |" in page
    widths = {line.count("|") for line in page.splitlines() if line.startswith(("| GPT", "| case"))}
    assert len(widths) == 1
    assert sound(result)  # a goal of speed is none of soundness
    broken = result | {"checks": [good, failed], "times": [{"name": "GPT-2, eager decoding", "error": "stopped"}]}
    assert not sound(broken) and not sound(result | {"checks": [good | {"good": False}]})
    assert "| same bytes twice | out of memory | | failed |" in markdown(broken)
    assert {line.count("|") for line in markdown(broken).splitlines() if line.startswith(("| GPT", "| case"))} == widths
    assert check_line(failed) == "  failed  same bytes twice: out of memory"
    assert "194 iterations in 1.62 min" in time_line(fast)


def test_a_part_that_fails_is_a_row() -> None:
    budget = Budget(BUDGET)
    assert "invalid choice: 'nothing'" in budget.run("benchmarks.checks", "nothing")["error"]
    assert Budget(0.0).run("benchmarks.checks", "float32 head") == {"error": "not run: no time is left"}


def test_a_python_without_the_libraries_says_so() -> None:
    code = "import sys; sys.modules['pydantic'] = None; from benchmarks.accelerator import main; sys.exit(main())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "") and "has no pydantic; `make accelerator WHEELS=" in done.stderr
