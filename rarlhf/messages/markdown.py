"""Any text within Markdown, shown as it is, and tables of such texts."""

import re
from collections.abc import Sequence

_HTML = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_MARKS = re.compile(r"[\\`|]|(?<=\])\(")  # a round bracket after a square one would make a link or an image


def escaped(text: str) -> str:
    """A text in one line of Markdown, shown letter by letter: no HTML, code, link or image, and no end of a table cell.

    Emphasis (`*`, `_`) stays possible. The escapes are those of CommonMark 0.31.2, sections 2.4 and 2.5, and `|` as
    GitHub has it in tables.
    """
    plain = "".join(_HTML.get(letter, letter) for letter in _one_line(text))
    return _MARKS.sub(lambda mark: f"\\{mark[0]}", plain)


def code(text: str) -> str:
    """A text as code within a line or within a table's cell (CommonMark 0.31.2, section 6.1)."""
    fence = "`" * (max(map(len, re.findall("`+", text)), default=0) + 1)
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    content = _one_line(text).replace("|", "\\|")
    return f"{fence}{pad}{content}{pad}{fence}"


def table(heading: Sequence[str], rows: Sequence[Sequence[str]], rules: Sequence[str] = ()) -> str:
    """A table of plain texts, which are escaped.

    Args:
        heading: one text for each column.
        rows: as many texts each.
        rules: how each column is aligned, such as `--:`; if empty, the reader's program decides.
    """
    lines = [[escaped(cell) for cell in row] for row in (heading, *rows)]
    lines.insert(1, list(rules) or ["---"] * len(heading))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text)
