"""The table of experiments, from what DVC tells."""

from pathlib import Path
from typing import Any

import pytest

from flows.experiments import main, table


def run(rev: str, name: str | None = None, alpha: float = 0.3, **means: float) -> dict[str, Any]:
    told = {"Experiment": name, "rev": rev, "typ": "x", "risk.alpha": alpha, "preset": "tiny", "models/rlhf": "abc.dir"}
    for method, mean in means.items():
        for metric in ("mean", "tail", "cvar_10", "kl", "perplexity"):
            told[f"metrics/summary/{method}.json:{metric}"] = mean
    return told


BEFORE = {"rlhf": 1.8, "ra_rlhf": 1.6}


def test_experiments_have_rows_for_what_differs_from_the_commit() -> None:
    runs = [
        run("workspace", **BEFORE),
        run("main", **BEFORE),
        run("e507626", "alpha-0.5", alpha=0.5, rlhf=1.8, ra_rlhf=1.75),
    ]
    lines = table(runs, ["preset", "risk.alpha"]).splitlines()
    assert lines[0].split() == ["method", "reward", "prompt", "tail", "CVaR", "10", "%", "KL,", "nats", "perplexity"]
    assert [line.split() for line in lines[2:5]] == [
        ["main", "RLHF", *["1.800"] * 5],
        ["main", "RA-RLHF", *["1.600"] * 5],
        ["alpha-0.5", "RA-RLHF", *["1.750"] * 5],
    ]
    assert lines[5:8] == ["", "alpha-0.5: risk.alpha 0.5 (0.3)", "workspace: params as in the commit"]
    assert max(map(len, lines)) <= 110 and "abc.dir" not in "".join(lines)


def test_a_run_without_numbers_has_no_row_and_a_lacking_one_a_dash() -> None:
    lacking = run("e507626", "failed", **BEFORE)
    for key in [key for key in lacking if key.startswith("metrics/")]:
        lacking[key] = None
    some = run("e507627", "some", **BEFORE) | {"metrics/summary/rlhf.json:kl": None}
    lines = table([run("main", **BEFORE), lacking, some], []).splitlines()
    assert not [line for line in lines if line.startswith("failed ")]
    assert lines[4].split() == ["some", "RLHF", "1.800", "1.800", "1.800", "–", "1.800"]


def test_outside_a_project_one_line_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main() == 1
    assert capsys.readouterr().err.startswith("error: DVC cannot read the experiments: ")
