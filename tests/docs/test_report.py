"""docs/report.md speaks of what is in the report, and of all of it."""

import re
from pathlib import Path

from tests.docs.pages import REPOSITORY

PAGE = (REPOSITORY / "docs" / "report.md").read_text(encoding="utf-8")


def test_the_pages_headings_are_those_of_a_report_in_its_order(template: Path) -> None:
    report = (template / "reports" / "report.html").read_text(encoding="utf-8")
    theirs = re.findall(r"<h([23])>(.*?)</h[23]>", report)
    assert theirs
    assert [(str(len(marks)), title) for marks, title in re.findall(r"^(##+) (.*)$", PAGE, re.MULTILINE)] == theirs


def test_the_pages_columns_are_those_of_the_results_table(template: Path) -> None:
    report = (template / "reports" / "report.html").read_text(encoding="utf-8")
    (header, *_) = re.findall(r"<thead><tr><th>method</th>(.*?)</tr></thead>", report)
    columns = re.findall(r"<th>(.*?)</th>", header)
    assert re.findall(r"^\| (.*?) \|", PAGE, re.MULTILINE) == ["column", "---", *columns]
