"""The templates of `dvc plots` draw methods in the colours of the report.

An ordinal scale of Vega with a fixed domain draws nothing for a value outside it. In the first layers the domain is the
known methods, so that each has its colour even if another is absent. The last layer's `unionWith` adds the further
methods, and Vega-Lite merges the domains of the layers in their order. (Vega-Lite 5.2, which DVC loads, would put the
known methods last if all layers had `unionWith`.) The legend takes its entries from the scale of the shapes, whose
domain is the methods that are there.
"""

import json
from pathlib import Path

import pytest

from rarlhf.config.methods import FURTHER, LOOKS

TEMPLATES = Path(__file__).parents[3] / ".dvc" / "plots"


@pytest.mark.parametrize("name", ["by_method", "by_seed"])
def test_colours_are_the_registrys_whatever_methods_are_absent(name: str) -> None:
    template = json.loads((TEMPLATES / f"{name}.json").read_text(encoding="utf-8"))
    colour = template["encoding"]["color"]
    assert colour["field"] == "method"
    assert colour["scale"]["domain"] == list(LOOKS)
    assert colour["scale"]["range"] == [*(look.colour for look in LOOKS.values()), *FURTHER]
    *others, last = (layer["encoding"] for layer in template["layer"])
    assert others and not any("color" in encoding for encoding in others)
    assert colour["legend"] == {"values": {"signal": "domain('shape')"}, "symbolOpacity": 1}
    assert last["shape"] == {"field": "method", "type": "nominal", "legend": None, "sort": None}
    assert last["color"] == {"field": "method", "scale": {"domain": {"unionWith": list(LOOKS)}}}
    assert colour["sort"] is None  # in the order of the rows, not by the alphabet


def test_bands_reach_from_the_lowest_to_the_highest_seed() -> None:
    bands = {
        name: json.loads((TEMPLATES / f"{name}.json").read_text(encoding="utf-8"))["layer"][1]
        for name in ("by_method", "by_seed")
    }
    for band in bands.values():
        assert band["mark"]["type"] == "area"
        assert band["encoding"]["detail"] == {"field": "rev"}  # a band for each revision that is compared
    ends = [bands["by_method"]["encoding"][axis]["field"] for axis in ("y", "y2")]
    assert ends == ["lowest", "highest"]  # columns of the csv files
    assert [bands["by_seed"]["encoding"][axis]["aggregate"] for axis in ("y", "y2")] == ["min", "max"]
