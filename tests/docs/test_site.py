"""The documentation as a site: its pages, what is refused, and the README's picture and table."""

import json
import re
import shutil
import tomllib
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from docs import build
from docs.figure import draw
from rarlhf.evaluation.figures import png
from tests.docs.pages import REPOSITORY


def test_links_lead_to_the_places_in_the_site() -> None:
    text = (
        "[a](docs/use.md#write) [b](../CONTRIBUTING.md#a-stage) [c](CHANGELOG.md) [d](own.md) ![e](docs/images/e.png)"
    )
    moved = "[a](use.md#write) [b](contributing.md#a-stage) [c](changelog.md) [d](own.md) ![e](images/e.png)"
    assert build.moved(text) == moved


def test_a_picture_in_mermaid_is_text_in_the_site_which_loads_nothing_to_draw_it() -> None:
    assert build.moved("```mermaid\na --> b\n```") == "```text\na --> b\n```"


def test_every_page_is_in_the_navigation_once() -> None:
    navigation = tomllib.loads((REPOSITORY / "zensical.toml").read_text(encoding="utf-8"))["project"]["nav"]
    named = [page for section in navigation for pages in section.values() for page in pages]
    pages = [path.name for path in (REPOSITORY / "docs").glob("*.md")] + list(build.PAGES.values())
    assert sorted(named) == sorted(pages)


def test_what_a_page_loads_from_elsewhere_is_named(tmp_path: Path) -> None:
    (tmp_path / "there.png").touch()
    (tmp_path / "page.html").write_text(
        '<img alt="x" src="there.png?a#b"><img src=gone.png>\n<script defer src="https://cdn.example/a.js"></script>'
        '<link rel="stylesheet" href="//fonts.example/b.css"><a href="https://else.example">a link loads nothing</a>'
    )
    assert build.faults(tmp_path) == [
        f"page.html loads {address}, which is not in the site"
        for address in ("//fonts.example/b.css", "gone.png", "https://cdn.example/a.js")
    ]


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the documentation, in which the site is built."""
    shutil.copytree(REPOSITORY / "docs", tmp_path / "docs")
    for name in ("zensical.toml", *build.PAGES):
        shutil.copyfile(REPOSITORY / name, tmp_path / name)
    monkeypatch.setattr(build, "REPOSITORY", tmp_path)
    return tmp_path


def test_the_site_is_built_and_loads_nothing_from_elsewhere(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert build.main() == 0, capsys.readouterr()
    assert "risk measure" in (copy / "site" / "glossary.html").read_text(encoding="utf-8").lower()
    assert (copy / "site" / "search.js").stat().st_size > 10_000  # what the search reads from files
    assert 'src="./javascripts/iframe-worker.js"' in (copy / "site" / "index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("link", "told"),
    [
        ("[a](nowhere.md)", "page does not exist"),
        ("[a](glossary.md#nowhere)", "anchor does not exist"),
        ("![a](images/nowhere.png)", "share.html loads"),
    ],
)
def test_what_leads_nowhere_ends_the_build(
    link: str, told: str, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (copy / "docs" / "share.md").open("a", encoding="utf-8") as page:
        page.write(f"\n{link}\n")
    assert build.main() == 1
    printed = capsys.readouterr()
    assert told in printed.out + printed.err
    assert "Traceback" not in printed.out + printed.err


def test_the_readme_names_every_stage() -> None:
    stages = YAML(typ="safe").load((REPOSITORY / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    table = re.findall(r"^\| (`.*?) \|", (REPOSITORY / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert {name for row in table for name in re.findall(r"`(\w+)`", row)} == set(stages)


def test_the_picture_shows_every_method_with_its_seeds_and_interval() -> None:
    evaluation = json.loads((REPOSITORY / "metrics" / "evaluate.json").read_text(encoding="utf-8"))
    numbers = {"n": 2, "mean": 1.5, "per_seed": [1.0, 2.0], "ci95": [-1.0, 4.0]}
    single = {"n": 1, "mean": 0.5, "per_seed": [0.5], "ci95": None}
    metrics = ("reward_mean", "reward_prompt_tail", "reward_cvar_10", "kl_sft")
    evaluation["methods"] = {"rlhf": dict.fromkeys(metrics, numbers), "own": dict.fromkeys(metrics, single)}
    figure = draw(evaluation)
    first = figure.axes[0]
    assert [axis.get_title(loc="left") for axis in figure.axes] == [
        "Mean reward",
        "Prompt tail",
        "CVaR 10 %",
        "KL to SFT",
    ]
    assert [label.get_text() for label in first.get_yticklabels()] == ["RLHF", "own"]
    assert [list(dots.get_offsets()[:, 0]) for dots in first.collections] == [[1.0, 2.0], [0.5]]
    spans = [list(line.get_xdata()) for line in first.lines]
    assert spans == [[-1.0, 4.0], [1.5], [0.5, 0.5], [0.5]]
    assert png(figure).startswith(b"\x89PNG")
