"""A figure as SVG within a page: its colours are the page's own, and it has no style of its own.

The page's Content-Security-Policy allows one style sheet and no `style` attributes. So each distinct style of the
figures becomes a class of that sheet, in which a colour is a custom property. The page sets these properties for light
and dark.
"""

import re
from collections.abc import Mapping
from io import StringIO
from xml.etree import ElementTree

import matplotlib as mpl
from matplotlib.figure import Figure

from rarlhf.evaluation.figures import STYLE

PALETTE: Mapping[str, str] = {  # colours of `figures` that belong to no method -> custom property of the page
    "#ffffff": "--page",
    "#000000": "--text",
    "#222222": "--text",
    "#333333": "--ink",
    "#444444": "--ink",
    "#555555": "--ink",
    "#8a8a8a": "--muted",
    "#d2d2d2": "--shade",
    "#e6e6e6": "--grid",
}
_COLOUR = re.compile(r"#[0-9a-f]{6}\b")
_NUMBER = re.compile(r"-?\d+\.\d{3,}")
_TURN = re.compile(r"rotate\(-?0 [^)]*\)")
_USED = re.compile(r"#([\w-]+)")


class Styles:
    """The styles of a page's figures, each a class that is numbered in the order of its first use."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        """Takes the custom property of each colour `#rrggbb`, without `var()`."""
        self._variables = {**PALETTE, **variables}
        self._names: dict[str, str] = {}

    def name(self, style: str) -> str:
        """The class of a `style` attribute.

        Raises: ValueError if it has a colour without a custom property, which could not be read on a dark page.
        """
        text = _COLOUR.sub(self._variable, style.strip()).replace("'DejaVu Sans'", "var(--font)")
        return self._names.setdefault(text, f"f{len(self._names)}")

    def _variable(self, colour: re.Match[str]) -> str:
        if colour[0] not in self._variables:
            raise ValueError(f"the colour {colour[0]} of a figure has no custom property: add it to PALETTE")
        return f"var({self._variables[colour[0]]})"

    def sheet(self) -> str:
        """The rules, one a line."""
        return "\n".join(f".{name} {{ {text} }}" for text, name in self._names.items())


def inline_svg(figure: Figure, name: str, text: str, styles: Styles) -> str:
    """The figure as an `<svg>` element, equal for equal figures.

    Args:
        figure: in the style of `figures`.
        name: part of its ids, different for each figure of a page.
        text: what it shows, for those who do not see it.
        styles: takes the figure's styles.

    Raises: ValueError as `Styles.name`.
    """
    buffer = StringIO()
    with mpl.rc_context({**STYLE, "svg.fonttype": "none", "svg.hashsalt": name}):
        none = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(buffer, format="svg", metadata=none)
    root = ElementTree.fromstring(buffer.getvalue())
    used = {match for element in root.iter() for value in element.attrib.values() for match in _USED.findall(value)}
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        for child in [child for child in element if child.tag.endswith(("}style", "}metadata"))]:
            element.remove(child)
        element.attrib = dict(_attributes(element.attrib, name, used, styles))
        element.tail = element.text = (element.text or "").strip() or None
        element.tail = None
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": text}
    return ElementTree.tostring(root, encoding="unicode")


def _attributes(found: Mapping[str, str], name: str, used: set[str], styles: Styles) -> dict[str, str]:
    """Attributes as the page may have them: ids that are used and of this figure alone, classes for styles."""
    kept: dict[str, str] = {}
    for key, value in found.items():
        plain = key.rpartition("}")[2]
        if plain == "style":
            kept["class"] = styles.name(value)
        elif plain == "id":
            kept |= {"id": f"{name}-{value}"} if value in used else {}
        elif plain == "transform" and _TURN.fullmatch(value):
            continue
        else:
            own = _USED.sub(lambda match: f"#{name}-{match[1]}", value)
            kept[plain] = _NUMBER.sub(lambda match: f"{float(match[0]):.2f}", " ".join(own.split()))
    return kept
