"""Texts within Markdown, read back by a program that renders it."""

from html.parser import HTMLParser

import pytest
from markdown_it import MarkdownIt

from rarlhf.messages.markdown import code, escaped, table

NASTY = [
    "<img src=x onerror=alert(1)>",
    "a | b || c",
    "one\ntwo\r\n\n# three\u2028four",
    "a ` b `` c",
    "`code`",
    "![p](http://evil.example/p.png) [x](javascript:alert(1)) ![p][r]",
    "\\| \\` \\<b> \\",
    "&lt;b&gt; &amp; &#96;",
    "| --- |",
]


class Reader(HTMLParser):
    """Collects the texts of a table's cells, or of all else, and the tags there are."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.tags: set[str] = set()
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.add(tag)
        if tag in ("td", "th", "p"):
            self.texts.append("")

    def handle_data(self, data: str) -> None:
        if self.texts:
            self.texts[-1] += data.rstrip("\n")


def read(markdown: str) -> Reader:
    return Reader(MarkdownIt("commonmark", {"html": True}).enable("table").render(markdown))


def in_one_line(text: str) -> str:
    return " ".join(text.split())


def test_a_table_shows_every_text_as_it_is() -> None:
    shown = read(table(["text", "note"], [[text, "x"] for text in NASTY]))
    assert shown.tags == {"table", "thead", "tbody", "tr", "th", "td"}
    assert shown.texts == ["text", "note", *(cell for text in NASTY for cell in (in_one_line(text), "x"))]


@pytest.mark.parametrize("text", NASTY)
def test_a_text_is_shown_as_it_is(text: str) -> None:
    shown = read(f"note: {escaped(text)}")
    assert (shown.tags, shown.texts) == ({"p"}, [f"note: {in_one_line(text)}"])


@pytest.mark.parametrize("text", NASTY)
def test_code_is_shown_as_it_is(text: str) -> None:
    shown = read(f"| a |\n| --- |\n| {code(text)} |")
    assert (shown.tags - {"code"}, shown.texts) == (
        {"table", "thead", "tbody", "tr", "th", "td"},
        ["a", in_one_line(text)],
    )


def test_plain_texts_and_numbers_stay_as_they_are() -> None:
    rows = [["SFT", "0.18 ±0.03"], ["RA-RLHF risk.alpha-0.2", "+0.31 [0.10, 0.52] *"]]
    assert table(["method", "reward"], rows, [":--", "--:"]).splitlines() == [
        "| method | reward |",
        "| :-- | --: |",
        "| SFT | 0.18 ±0.03 |",
        "| RA-RLHF risk.alpha-0.2 | +0.31 [0.10, 0.52] * |",
    ]
