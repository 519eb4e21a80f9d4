"""The benchmark's quick mode: everything runs, and the results have their keys. No time is asserted."""

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.compare import FULL, WORK, ratios, turns
from benchmarks.growth import episode_flops, grown
from benchmarks.race import ROOT, Report, summary
from benchmarks.report import PARTS, page
from benchmarks.run import Steps
from benchmarks.setting import Setting, Work
from tests.warm import warm_python

RATIOS = ("ratio_fp32_full", "ratio_fp32_alpha_0_4", "ratio_best_full", "ratio_best_alpha_0_4")
PHASES = {"decode", "score", "policy", "reference", "update"}
SMALL = Work(layers=2, width=3, heads=1, vocab_size=7, episodes=5, query_tokens=4, response_tokens=2, epochs=1)

pytestmark = pytest.mark.timeout(1200)
LIBRARIES = ("numpy.random", "torch", "transformers.models.gpt2.modeling_gpt2", "peft")


@pytest.fixture(scope="session")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of a quick run without the peer."""
    folder = tmp_path_factory.mktemp("results")
    with warm_python(os.environ, LIBRARIES, first_real=False) as python:
        command = [python / "python3", "-m", "benchmarks.run", "--quick", "--threads", "1", "--out", str(folder)]
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    (folder / "said").write_text(run.stdout)
    return folder


@pytest.mark.slow
def test_the_results_have_their_keys(results: Path) -> None:
    compared = json.loads((results / "compare.json").read_text())
    assert {"processor", "threads", "versions", "runs", "trials", *RATIOS} <= set(compared)
    for name, kept in (("ours_fp32_full", 1.0), ("ours_bf16_alpha_0_4", 0.4)):
        run = compared["runs"][name]
        assert set(run["phases"]) == PHASES
        assert run["setting"]["keep"] == kept
        assert {"median", "quartiles", "seconds", "peak_above_baseline_bytes"} <= set(run)
    grown_runs = json.loads((results / "growth.json").read_text())["runs"]
    assert set(grown_runs["base float32"]["update"]) == {"flops_per_second", "matmul_flops_per_second", "share"}
    heads = json.loads((results / "head.json").read_text())
    assert set(heads["runs"]) == {"float32", "bfloat16"}
    assert [set(run["phases"]) for run in heads["runs"].values()] == [PHASES, PHASES]
    float32, bfloat16 = (run["cpu_seconds"][0] for run in heads["runs"].values())
    assert heads["ratio"] == heads["ratios"][0] == float32 / bfloat16
    rounded = json.loads((results / "rounding.json").read_text())
    assert rounded["float32"]["token_largest"] < 1e-4 < rounded["bfloat16"]["token_largest"]
    assert str(results) not in (results / "compare.json").read_text()  # no machine paths


@pytest.mark.slow
def test_a_page_can_be_made_of_them_without_the_peer(results: Path) -> None:
    text = page(*(json.loads((results / f"{name}.json").read_text()) for name in PARTS))
    assert "ours_bf16_alpha_0_4" in text
    assert "## Logits in float32" in text
    assert "nan" not in text


def run_of(median: float, score: float) -> dict[str, object]:
    return {"median": median, "phases": {"score": score}}


def test_ratios_by_hand() -> None:
    ours = {"fp32": 3.0, "fp32_recompute": 4.0, "bf16": 2.0}
    runs = {f"ours_{name}_full": run_of(seconds, 0.5) for name, seconds in ours.items()}
    runs |= {f"ours_{name}_alpha_0_4": run_of(seconds / 2, 0.5) for name, seconds in ours.items()}
    runs |= {"peer_fp32_full": run_of(12.0, 2.0), "peer_bf16_full": run_of(10.0, 1.0)}
    found = ratios(runs)
    assert found["ratio_fp32_full"] == 12 / 3
    assert found["ratio_fp32_alpha_0_4"] == 12 / 1.5
    assert found["ratio_fp32_recompute_full"] == 12 / 4
    assert found["ratio_best_full"] == 10 / 2  # the faster of the peer's two by the fastest of ours
    assert found["ratio_best_alpha_0_4"] == 10 / 1
    assert found["ratio_fp32_full_without_score"] == 10 / 2.5
    assert found["ratio_best_full_without_score"] == 9 / 1.5
    del runs["peer_fp32_full"], runs["peer_bf16_full"]
    assert set(ratios(runs).values()) == {None}


def test_summary_by_hand() -> None:
    reports = [
        {"seconds": s, "cpu_seconds": s, "phases": {"decode": s / 2}, "baseline_bytes": 5, "above_bytes": int(10 * s)}
        for s in (3.0, 1.0, 2.0, 5.0, 4.0)
    ]
    found = summary(reports)
    assert found["median"] == 3.0
    assert found["quartiles"] == [2.0, 4.0]
    assert found["phases"] == {"decode": 1.5}
    assert found["peak_above_baseline_bytes"] == 50


def test_flops_by_hand() -> None:
    # 5 positions, 12 x 3^2 weights a layer, 2 layers; 2 positions of 3 x 7 in the head; 2 operations each
    assert episode_flops(SMALL) == 2 * (5 * 12 * 9 * 2 + 2 * 3 * 7)


def test_one_size_at_a_time_grows() -> None:
    assert grown(SMALL, {"width": (6,)}) == {"base": SMALL, "width=6": replace(SMALL, width=6)}


def test_a_setting_survives_its_text() -> None:
    setting = Setting("x", "ours", WORK, "folder", 2, "bfloat16", 8, keep=0.4, rollout_logprobs="decode")
    assert Setting.read(setting.text()) == setting
    assert setting.kept == 26  # ceil(25.6)


@pytest.mark.slow
def test_progress_ends_when_the_turns_do(results: Path) -> None:
    lines = [line for line in (results / "said").read_text().splitlines() if line.startswith("bench ")]
    assert lines[-1].startswith("bench 10/10 bfloat16 head ")


def test_turns_of_the_whole_comparison() -> None:
    assert turns(FULL, sides=2) == 5 * 3 * 3 + 8 * 6  # trials of three micro-batches; then eight settings
    assert turns(FULL, sides=1) == 3 * 3 * 3 + 6 * 6


def test_ratios_so_far() -> None:
    def reports(seconds: float) -> list[Report]:
        return [
            {"seconds": seconds, "cpu_seconds": 1.0, "phases": {"score": 0.0}, "baseline_bytes": 0, "above_bytes": 0}
        ]

    names = [f"ours_{kind}_{share}" for kind in ("fp32", "fp32_recompute") for share in ("full", "alpha_0_4")]
    ours = {name: reports(1.0 if name.endswith("full") else 0.5) for name in names}
    told: list[tuple[int, str]] = []
    steps = Steps(lambda done, text: told.append((done, text)))
    steps("ours_fp32_full", ours)
    steps("peer_fp32_full", {**ours, "peer_fp32_full": reports(3.0)})
    steps("base float32", {"base float32": reports(1.0)})
    ratio = "so far 6.00 times faster at the worst 40 %, 3.00 on all"
    assert told == [(1, "ours_fp32_full"), (2, f"peer_fp32_full; {ratio}"), (3, f"base float32; {ratio}")]
