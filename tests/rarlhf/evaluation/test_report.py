import re
import unicodedata
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from rarlhf.config.methods import FURTHER
from rarlhf.evaluation.comparisons import compare_methods, tail_of
from rarlhf.evaluation.report import CAPTIONS, Answer, TailSample, draw_pictures, render_report, tail_samples, visible
from rarlhf.rl.metrics import RECORDED_TAIL

RUN = {name: np.arange(1.0, 6.0) for name in ("iteration", "score_mean", "score_cvar", "kl", "kl_coef", "kept")}
TRAINING = {method: {seed: RUN for seed in (1, 2, 3)} for method in ("rlhf", "ra_rlhf")}
VOID = {"meta", "img", "br", "link", "input"}


class Nesting(HTMLParser):
    """Fails where a tag is closed that was not the last one opened."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.seen.add(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def build(tables, perplexities, params, offensive: bool = False) -> str:
    evaluation = compare_methods(tables, perplexities, params)
    return render_report(
        evaluation,
        draw_pictures(tables, TRAINING, evaluation, params),
        tail_samples(tables, tail_of(tables, params), params.evaluate.table_rows, params.evaluate.seed),
        {"train": {"used": 3200, "too short": 12}, "sft": 3000},
        params,
        {"inputs (SHA-256)": "0123abcd"},
        offensive,
    )


@pytest.fixture(scope="module")
def page(tables, perplexities, params) -> str:
    return build(tables, perplexities, params)


def test_page_needs_nothing_from_outside(page: str) -> None:
    assert "http" not in page
    assert "<script" not in page
    assert "<link" not in page
    assert "@import" not in page
    sources = re.findall(r'(?:src|href)="([^"]{0,30})', page)
    assert len(sources) == 6
    assert all(source.startswith("data:image/png;base64,") for source in sources)


def test_page_is_well_formed(page: str) -> None:
    parser = Nesting()
    parser.feed(page)
    assert parser.open == []
    assert {"table", "figure", "details", "footer"} <= parser.seen


def test_equal_input_gives_equal_bytes(page: str, tables, perplexities, params) -> None:
    assert build(tables, perplexities, params) == page


def test_page_says_what_was_compared_and_found(page: str) -> None:
    results = page.split("<h2>Results</h2>")[1].split("</table>", maxsplit=1)[0]
    assert re.findall(r"<tr><td[^>]*>([^<]*?)(?: ▲)?</td>", results) == ["Base", "SFT", "RLHF", "RA-RLHF"]
    for text in ("tiny", "1, 2, 3", "4 prompts: lowest 10% by prompt score", "like KL", "0123abcd"):
        assert text in page
    assert "<td>train.too short</td><td><bdi>12</bdi></td>" in page
    assert "<td>risk.alpha</td><td><bdi>0.3</bdi></td>" in page
    assert "reward_cvar_of_means_10" in page


def test_texts_of_models_are_escaped(page: str) -> None:
    assert "&lt;b&gt;&amp;" in page
    assert "<b>" not in page


HOSTILE = {
    "\u202eoverride": "\\u202eoverride",  # right-to-left override, never closed
    "\u2067isolate\u200b": "\\u2067isolate\\u200b",  # a zero-width space behind it
    "\x1b[31mred\x07\x9b2J": "\\x1b[31mred\\x07\\x9b2J",
    "null\x00\ud800": "null\\x00\\ud800",
    "one\r\ntwo\u2028three": "one\\r\ntwo\\u2028three",
    "tag\U000e0041": "tag\\U000e0041",
    "می\u200cخواهم 👩\u200d👧\u00a0é": "می\u200cخواهم 👩\u200d👧\u00a0é",  # joiners that scripts and signs need
}


@pytest.mark.parametrize(("text", "shown"), HOSTILE.items())
def test_steering_characters_are_shown_as_escapes(text: str, shown: str) -> None:
    assert visible(text) == shown


class Isolated(HTMLParser):
    """The texts within <bdi> elements, which the bidirectional algorithm lays out apart from what is around them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self._inside = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self._inside = tag == "bdi"

    def handle_endtag(self, tag: str) -> None:
        self._inside = False

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.texts.append(data)


def test_texts_of_others_cannot_reorder_the_page(tables, perplexities, params) -> None:
    samples = [TailSample(text, "-1.2", (Answer("rlhf", text, "0.3"),)) for text in HOSTILE]
    named = params.model_copy(update={"data": params.data.model_copy(update={"path": "rows/\u202ename"})})
    evaluation = compare_methods(tables, perplexities, params)
    page = render_report(evaluation, [], samples, {"rows": "\u202e7"}, named, {"data/\u202e (SHA-256)": "a"}, False)
    page.encode("utf-8")
    assert not {c for c in page if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl")} - set("\n\u200c\u200d")
    isolated = Isolated(page).texts
    for shown in HOSTILE.values():
        assert isolated.count(shown) == 2  # as prompt and as answer
    assert re.search(r"\.sample p \{[^}]*overflow-wrap: anywhere", page)  # a long word stays within its box
    assert {"rows/\\u202ename", "\\u202e7", "data/\\u202e (SHA-256): a"} <= set(isolated)


def contrast(first: str, second: str) -> float:
    """Of two colours, from 1 to 21 (WCAG 2.2)."""

    def luminance(colour: str) -> float:
        parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    lighter, darker = sorted((luminance(first), luminance(second)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def test_names_of_methods_can_be_read_on_light_and_dark_pages(tables, perplexities, params) -> None:
    own = {f"own_{number}": tables["rlhf"] for number in range(len(FURTHER))}
    theirs = {name: perplexities["rlhf"] for name in own}
    evaluation = compare_methods({**tables, **own}, {**perplexities, **theirs}, params)
    page = render_report(evaluation, [], [], {}, params, {}, False)
    light, dark = re.findall(r"--page: (#\w{6})", page)
    for method in evaluation["methods"]:
        on_light, on_dark = re.findall(rf"\.method-{method} {{ color: (#\w{{6}}); }}", page)
        assert contrast(on_light, light) >= 4.5
        assert contrast(on_dark, dark) >= 4.5


def test_offensive_text_is_announced_and_folded(page: str, tables, perplexities, params) -> None:
    assert "offensive" not in page
    assert "<details open>" in page
    warned = build(tables, perplexities, params, offensive=True)
    assert "may be offensive" in warned
    assert "<details open>" not in warned


def test_page_of_two_methods_without_training(tables, perplexities, params) -> None:
    evaluation = compare_methods({method: tables[method] for method in ("base", "sft")}, perplexities, params)
    two = {method: tables[method] for method in ("base", "sft")}
    pictures = draw_pictures(two, {}, evaluation, params)
    assert [picture.name for picture in pictures] == [
        "reward_quantile",
        "cvar_curve",
        "reward_distribution",
        "trade_off",
    ]
    page = render_report(evaluation, pictures, [], {}, params, {}, offensive=False)
    assert "No method was trained" in page
    assert "Samples from the prompt tail" not in page


def test_the_training_tail_is_told_at_the_level_that_is_recorded() -> None:
    level = f"worst {RECORDED_TAIL * 100} %"
    page = Path(__file__).parents[3].joinpath("docs", "evaluation.md").read_text(encoding="utf-8")
    (row,) = [line for line in page.splitlines() if line.startswith("| `training.csv`")]
    assert level in CAPTIONS["training"][1]
    assert level in row


def texts_of(samples: list[TailSample]) -> list[str]:
    return [sample.prompt for sample in samples]


def test_samples_are_drawn_from_the_tail_by_the_seed(tables, params) -> None:
    tail = np.arange(40) < 20
    first, same, other = (tail_samples(tables, tail, 5, seed) for seed in (1, 1, 2))
    assert first == same
    assert texts_of(first) != texts_of(other)
    assert all(int(text.removeprefix("prompt ")) < 20 for text in texts_of(first))
    assert [answer.method for answer in first[0].answers] == list(tables)
    assert len(tail_samples(tables, tail, 99, 1)) == 20
    assert tail_samples(tables, tail, 0, 1) == []


def test_sample_shows_the_first_seeds_first_continuation(tables) -> None:
    sample = tail_samples(tables, np.arange(40) == 7, 1, 1)[0]
    table = tables["rlhf"][1]
    assert sample.prompt == "prompt 7"
    assert sample.answers[2].text == table.continuations[7][0]
    assert sample.answers[2].score == f"{table.scores[7, 0]:.2f}"
