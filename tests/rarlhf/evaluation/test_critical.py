"""The figure of the critical prompts."""

from typing import Any

import numpy as np
import pytest

from rarlhf.config.methods import colours_of
from rarlhf.evaluation.critical import critical_prompts_figure

METHODS = ["rlhf", "ra_rlhf", "cvar_rlhf", "cvar_fit", "quark", "rloo", "gedi"]


@pytest.mark.parametrize("count", [1, 3, 7])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_legend_stands_above_all_marks_and_above_zero(count: int, sign: int) -> None:
    methods, rng = METHODS[:count], np.random.default_rng(1)
    clusters = []
    for _ in range(3):
        gains: dict[str, Any] = {}
        for method in methods:
            found = sign * rng.random(3)
            gains[method] = {"mean": float(found.mean()), "n": 3, "per_seed": found.tolist()}
        clusters.append({"prompts": 4, "prompt_score": 0.0, "nearest": [1], "gains": gains})
    places = [[float(x), float(y), i % 3] for i, (x, y) in enumerate(rng.random((12, 2)))]
    evaluation: Any = {"critical_prompts": {"clusters": clusters, "places": places, "explained": 0.5}}
    drawing = critical_prompts_figure(evaluation, colours_of(methods))
    assert drawing is not None
    axis = drawing.figure().axes[1]
    axis.figure.draw_without_rendering()
    legend = axis.get_legend().get_window_extent()
    highest = max(
        0.0, *(value for cluster in clusters for gain in cluster["gains"].values() for value in gain["per_seed"])
    )
    assert legend.y0 > axis.transData.transform((0, highest))[1]
    panel = axis.get_window_extent()
    assert panel.x0 <= legend.x0 < legend.x1 <= panel.x1
    assert legend.y1 <= panel.y1
