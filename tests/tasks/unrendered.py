"""Stage evaluate without rendering, which takes most of its time."""

import pytest

PNG = b"\x89PNG\r\n\x1a\n"


def unrendered(patch: pytest.MonkeyPatch) -> None:
    """Figures are built, and neither written as PNG nor as SVG.

    For the second run with the same kinds of figures: the first shows that they can be rendered.
    """
    patch.setattr("rarlhf.evaluation.figures.png", lambda figure: PNG)
    patch.setattr("rarlhf.evaluation.pictures.inline_svg", lambda figure, name, *_: f'<svg id="{name}"></svg>')
