import re

import pytest
from matplotlib.figure import Figure

from rarlhf.evaluation.svg import Styles, inline_svg


def drawn(colour: str = "#0072b2") -> Figure:
    figure = Figure(figsize=(2, 1))
    axis = figure.subplots()
    axis.plot([0, 1], [0, 1], color=colour)
    axis.scatter([0.5], [0.5], color=colour)
    axis.set_title("a < b & c")
    return figure


def test_a_style_is_a_class_with_the_pages_colours() -> None:
    styles = Styles({"#0072b2": "--method-rlhf"})
    assert [styles.name(style) for style in ("fill: #0072b2; stroke: #ffffff", " fill: none", "fill: none")] == [
        "f0", "f1", "f1",
    ]  # fmt: skip
    assert styles.name("font-family: 'DejaVu Sans'") == "f2"
    assert styles.sheet() == (
        ".f0 { fill: var(--method-rlhf); stroke: var(--page) }\n.f1 { fill: none }\n.f2 { font-family: var(--font) }"
    )


def test_a_colour_that_the_page_does_not_have_is_refused() -> None:
    with pytest.raises(ValueError, match="#123456 of a figure has no custom property"):
        Styles({}).name("fill: #123456")


def test_a_figure_has_classes_texts_and_ids_of_its_own() -> None:
    styles = Styles({"#0072b2": "--method-rlhf"})
    first, second = (inline_svg(drawn(), name, 'a "line"', styles) for name in ("one", "two"))
    assert first.startswith('<svg viewBox="0 0 144 72" role="img" aria-label="a &quot;line&quot;">')
    assert "a &lt; b &amp; c</text>" in first
    assert not re.findall(r"style|xmlns|http|#[0-9a-f]{6}\b|\d\.\d{3}|<metadata", first)
    ids, used = re.findall(r' id="([^"]+)"', first), set(re.findall(r"#([\w-]+)", first))
    assert used and used == set(ids) and len(ids) == len(set(ids))
    assert all(name.startswith("one-") for name in ids)
    assert second == first.replace("one-", "two-") or not set(ids) & set(re.findall(r' id="([^"]+)"', second))
    assert not re.findall(r"#[0-9a-f]{6}", styles.sheet())


def test_equal_figures_give_equal_text() -> None:
    first, second = (inline_svg(drawn(), "one", "", Styles({"#0072b2": "--a"})) for _ in range(2))
    assert first == second
