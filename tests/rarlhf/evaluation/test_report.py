import json
import re
import unicodedata
from base64 import b64encode
from hashlib import sha256
from html.parser import HTMLParser

import numpy as np
import pytest

from rarlhf.config.methods import FURTHER
from rarlhf.evaluation.browser import browser
from rarlhf.evaluation.comparisons import Evaluation, compare_methods, tail_of
from rarlhf.evaluation.pictures import Pictures, draw_pictures
from rarlhf.evaluation.report import Origin, Texts, render_report
from rarlhf.evaluation.samples import Answer, TailSample, tail_samples
from tests.rarlhf.evaluation.texts import HOSTILE

pytestmark = pytest.mark.slow  # the page takes seconds
RUN = {name: np.arange(1.0, 6.0) for name in ("iteration", "score_mean", "score_cvar", "kl", "kl_coef", "kept")}
TRAINING = {method: {seed: RUN for seed in (1, 2, 3)} for method in ("rlhf", "ra_rlhf")}
VOID = {"meta", "img", "br", "link", "input"}
NO_PICTURES, NO_ORIGIN = Pictures({}, ""), Origin("rarlhf", "", {})


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


@pytest.fixture(scope="module")
def measured(tables, perplexities, params) -> tuple[Evaluation, Pictures]:
    evaluation = compare_methods(tables, perplexities, params)
    return evaluation, draw_pictures(tables, TRAINING, evaluation, params)


def build(measured, tables, params, offensive: bool = False) -> str:
    (evaluation, pictures), tail = measured, tail_of(tables, params)
    samples = tail_samples(tables, tail, params.evaluate.table_rows, params.evaluate.seed)
    return render_report(
        evaluation,
        pictures,
        Texts(samples, browser(tables, tail, params.evaluate), offensive),
        {"train": {"used": 3200, "too short": 12}, "sft": 3000},
        params,
        Origin("rarlhf", "0123abcd", {"inputs (SHA-256)": "0123abcd"}),
        {},
    )


@pytest.fixture(scope="module")
def page(measured, tables, params) -> str:
    return build(measured, tables, params)


def test_page_needs_nothing_from_outside(page: str) -> None:
    assert "http:" not in page and "https:" not in page
    assert not re.findall(r"<(?:link|img|iframe|base|form)\b|@import|url\((?!#)", page)
    assert all(link.startswith("#") for link in re.findall(r"""(?:src|href)=["']?([^"'> ]+)""", page))


def test_the_policy_allows_the_pages_own_style_and_script_alone(page: str) -> None:
    (policy,) = re.findall(r'<meta http-equiv="Content-Security-Policy" content="([^"]+)">', page)
    sheet, script = (re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL) for tag in ("style", "script"))
    hashes = [b64encode(sha256(text.encode()).digest()).decode() for text in sheet + script]
    style, code = (f"'sha256-{digest}'" for digest in hashes)
    assert policy.replace("&#39;", "'") == (
        f"default-src 'none'; style-src {style}; script-src {code}; base-uri 'none'; form-action 'none'"
    )
    assert not re.findall(r"<[^>]*\s(?:style|on\w+)=", page)  # what the policy would block
    assert not re.findall(r"innerHTML|insertAdjacent|document\.write|eval|fetch|XMLHttp|import\(", script[0])


def test_contents_lead_to_the_headings(page: str) -> None:
    linked = re.findall(r'<li(?: hidden)?><a href="#([\w-]+)">(.*?)</a>', page)
    assert linked == re.findall(r'<h2 id="([\w-]+)">(.*?)</h2>', page)
    assert len(linked) > 10
    ids = re.findall(r'\sid="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_without_scripts_the_browser_is_hidden_and_the_samples_are_there(page: str) -> None:
    assert '<li hidden><a href="#browse">' in page
    assert re.search(r'<section id="browser"[^>]* hidden>', page)
    assert "<details open>\n<summary>4 prompts drawn at random" in page


def test_the_browsers_data_can_be_read_and_end_no_element(page: str) -> None:
    (data,) = re.findall(r'<script type="application/json" id="browser-data">(.*?)</script>', page)
    assert "<" not in data and "&" not in data
    content = json.loads(data)
    assert len(content["prompts"]) == 40
    assert content["prompts"][0]["answers"][0][0][2].endswith(" <b>&")


def test_page_is_well_formed(page: str) -> None:
    parser = Nesting()
    parser.feed(page)
    assert parser.open == []
    assert {"table", "figure", "details", "footer"} <= parser.seen


def test_equal_input_gives_equal_bytes(page: str, measured, tables, params) -> None:
    assert build(measured, tables, params) == page


def test_page_says_what_was_compared_and_found(page: str) -> None:
    results = page.split(">Results</h2>")[1].split("</table>", maxsplit=1)[0]
    assert re.findall(r"<tr><td[^>]*>([^<]*?)(?: ▲)?</td>", results) == ["Base", "SFT", "RLHF", "RA-RLHF"]
    for text in ("tiny", "1, 2, 3", "4 prompts: lowest 10% by prompt score", "like KL", "0123abcd"):
        assert text in page
    assert "<td>train.too short</td><td><bdi>12</bdi></td>" in page
    assert "<td>risk.alpha</td><td><bdi>0.3</bdi></td>" in page
    assert "reward_cvar_of_means_10" in page


def test_texts_of_models_are_escaped(page: str) -> None:
    assert "&lt;b&gt;&amp;" in page
    assert "<b>" not in page


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


def test_texts_of_others_cannot_reorder_the_page(measured, params) -> None:
    samples = [TailSample(text, "-1.2", (Answer("rlhf", text, "0.3"),)) for text in HOSTILE]
    named = params.model_copy(update={"data": params.data.model_copy(update={"path": "rows/\u202ename"})})
    evaluation, _ = measured
    origin = Origin("rarlhf", "", {"data/\u202e (SHA-256)": "a"})
    page = render_report(evaluation, NO_PICTURES, Texts(samples, None, False), {"rows": "\u202e7"}, named, origin, {})
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
    page = render_report(evaluation, NO_PICTURES, Texts([], None, False), {}, params, NO_ORIGIN, {})
    light, dark = re.findall(r"--page: (#\w{6})", page)
    for name in ("text", "quiet", "ink"):
        for colour, behind in zip(re.findall(rf"--{name}: (#\w{{6}})", page), (light, dark), strict=True):
            assert contrast(colour, behind) >= 4.5
    for method in evaluation["methods"]:
        on_light, on_dark = re.findall(rf"--method-{method}: (#\w{{6}});", page)
        assert contrast(on_light, light) >= 4.5
        assert contrast(on_dark, dark) >= 4.5


def test_offensive_text_is_announced_folded_and_blurred(page: str, measured, tables, params) -> None:
    assert "may be offensive" not in page and 'class="veiled"' not in page
    folded = "<summary>4 prompts drawn"
    assert f"<details open>\n{folded}" in page
    warned = build(measured, tables, params, offensive=True)
    assert warned.count("may be offensive") == 2  # before the browser, before the samples
    assert f"<details>\n{folded}" in warned
    assert warned.count('class="veiled" tabindex="0"') == 4 * (1 + 4)  # prompts, and four answers to each
    assert 'data-offensive="true"' in warned and 'id="browser-unveil"' in warned
    assert "\n.veiled:focus { filter: none; }" in warned  # wherever it stands


def test_page_of_two_methods_without_training(tables, perplexities, params) -> None:
    evaluation = compare_methods({method: tables[method] for method in ("base", "sft")}, perplexities, params)
    two = {method: tables[method] for method in ("base", "sft")}
    pictures = draw_pictures(two, {}, evaluation, params)
    page = render_report(evaluation, pictures, Texts([], None, offensive=False), {}, params, NO_ORIGIN, {})
    assert "No method was trained" in page
    assert "Samples from the prompt tail" not in page and 'id="browser"' not in page
    assert "Paired differences" in page and "What the intervals say" not in page


def test_every_seed_has_its_row(page: str) -> None:
    rows = page.split(">Seed by seed</h2>")[1].split("</table>", maxsplit=1)[0]
    assert re.findall(r"<tr><td>([^<]*)</td><td>(\d)</td>", rows) == [
        (label, seed) for label in ("Base", "SFT", "RLHF", "RA-RLHF") for seed in "123"
    ]


def test_the_foot_says_how_to_find_the_run(page: str) -> None:
    foot = page.split("<footer>")[1]
    assert "experiment <code>rarlhf</code>" in " ".join(foot.split())
    assert "tags.inputs_hash = '0123abcd'" in foot


def test_of_one_seed_no_difference_is_marked(tables, perplexities, params) -> None:
    single = {method: {1: by_seed[1]} for method, by_seed in tables.items()}
    evaluation = compare_methods(single, perplexities, params.model_copy(update={"seeds": [1]}))
    interval = evaluation["comparisons"]["rlhf_minus_sft"]["metrics"]["reward_mean"]["interval"]
    assert interval and interval[0] > 0
    page = render_report(evaluation, NO_PICTURES, Texts([], None, False), {}, params, NO_ORIGIN, {})
    assert f"[{interval[0]:.2f}, {interval[1]:.2f}]" in page and 'class="best"' not in page
    assert "so none is bold" in page and "Bold: leaves out zero" not in page


def test_of_several_seeds_differences_that_leave_out_zero_are_marked(page: str) -> None:
    differences = page.split(">Paired differences</h2>")[1].split("</table>", maxsplit=1)[0]
    assert 'class="best"' in differences
    assert "Bold: leaves out zero" in page and "One seed" not in page
