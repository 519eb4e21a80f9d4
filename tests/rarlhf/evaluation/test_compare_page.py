"""A comparison as a page of HTML."""

import re
from html.parser import HTMLParser

from rarlhf.evaluation.compare_page import page
from tests.rarlhf.evaluation.test_compare_tables import CHANGED, HIGHER, of, pair

VOID = {"meta", "link", "img", "br"}


class Nesting(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_has_all_and_loads_nothing() -> None:
    comparison = of(pair("rlhf", reward_mean=HIGHER), pair("sft"), changed=CHANGED, notes=["A note."])
    text = page(comparison)
    Nesting().feed(text)
    for part in ("exp|1 less main", "RLHF: B is ahead of A on mean reward", "Equal in A and B, in every seed: SFT."):
        assert part in text
    for part in ("4.00 ±2.37", "risk.alpha", "A note.", "lowest 10% by prompt score", "<dt>Seeds</dt><dd>1, 2, 3</dd>"):
        assert part in text
    assert re.search(r'<td class="apart">\+2.00</td><td class="apart">\[1.75, 2.25\]<span class="star">\*<', text)
    assert not re.search(r"https?:|<script|<link|src=", text)
    assert text == page(comparison)


def test_names_and_values_of_others_are_text() -> None:
    text = page(of(pair("rlhf"), names=("<b>", "main"), changed=[("preset", "<i>", "tiny")]))
    assert "<b>" not in text and "<i>" not in text
    assert "&lt;b&gt;" in text


def test_where_nothing_differs_no_table_is_shown() -> None:
    text = page(of(pair("rlhf")))
    assert "<table" not in text
    assert "A and B have the same params.yaml." in text
