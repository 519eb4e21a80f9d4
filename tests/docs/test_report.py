"""docs/report.md speaks of what is in the report, and of all of it; docs/evaluation.md's numbers are right."""

import re
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import norm

from rarlhf.config.load import load_params
from rarlhf.evaluation.comparisons import DEFINITIONS
from rarlhf.evaluation.metrics import cvar
from tests.docs.pages import REPOSITORY

PAGE = (REPOSITORY / "docs" / "report.md").read_text(encoding="utf-8")
OPTIONAL = {"Utility"}  # sections that the default report lacks
DEFINED = (REPOSITORY / "docs" / "evaluation.md").read_text(encoding="utf-8")


def test_the_pages_headings_are_those_of_a_report_in_its_order(template: Path) -> None:
    report = (template / "reports" / "report.html").read_text(encoding="utf-8")
    theirs = re.findall(r"<h([23])(?: id=\"[\w-]+\")?>(.*?)</h[23]>", report)
    assert theirs
    ours = [(str(len(marks)), title) for marks, title in re.findall(r"^(##+) (.*)$", PAGE, re.MULTILINE)]
    assert [heading for heading in ours if heading[1] not in OPTIONAL] == theirs


def test_the_pages_columns_are_those_of_the_results_table(template: Path) -> None:
    report = (template / "reports" / "report.html").read_text(encoding="utf-8")
    (header, *_) = re.findall(r"<thead><tr><th>method</th>(.*?)</tr></thead>", report)
    columns = re.findall(r"<th>(.*?)</th>", header)
    assert re.findall(r"^\| (.*?) \|", PAGE, re.MULTILINE) == ["column", "---", *columns]


def test_the_definitions_are_those_of_the_code() -> None:
    assert f"Definitions, version {DEFINITIONS} " in DEFINED
    chosen = load_params(REPOSITORY / "presets" / "tiny.yaml").evaluate
    assert f"|d_s| <= {chosen.like_kl:g} `kl.target`" in DEFINED
    assert f"{chosen.bootstrap_draws} bootstrap draws" in DEFINED
    assert f"{chosen.kl_limit:g} times its target" in DEFINED


def test_the_told_bias_of_per_prompt_cvar_is_right() -> None:
    (told,) = re.findall(
        r"by\s+([\d.]+) standard deviations at k = 10, ([\d.]+) at k = 25 and ([\d.]+) at k = 64", DEFINED
    )
    truth = -norm.pdf(norm.ppf(0.1)) / 0.1  # the mean of a normal variable's lowest tenth
    draws = np.random.default_rng(1).normal(size=(20_000, 64))
    for samples, bias in zip((10, 25, 64), told, strict=True):
        measured = cvar(draws[:, :samples], 0.1).mean() - truth
        assert measured == pytest.approx(
            float(bias), abs=0.015
        )  # rounded to .01, and .7 / sqrt(20,000) = .005 of error
