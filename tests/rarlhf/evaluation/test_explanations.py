from pathlib import Path
from typing import Any

import pytest

from rarlhf.config.load import load_params
from rarlhf.evaluation.comparisons import Evaluation
from rarlhf.evaluation.explanations import explain, explanations_page
from tests.rarlhf.evaluation.test_frontier import evaluation

CHOSEN = load_params(Path(__file__).parents[3] / "presets" / "tiny.yaml").evaluate
FIXED = {
    "coef-1": ({"kl.rate": 0.0, "kl.coef": 1.0}, evaluation(2.0, rlhf=([1.0, 1.0], [1.0, 2.0]))),
    "coef-0.5": ({"kl.rate": 0.0, "kl.coef": 0.5}, evaluation(2.0, rlhf=([3.0, 3.0], [3.0, 4.0]))),
}


def cell(
    ranking: str, kl: list[float], values: list[float], dropped: str = "free"
) -> tuple[dict[str, Any], Evaluation]:
    keys = {"risk.ranking": ranking, "kl.average": "all", "risk.dropped": dropped}
    return keys, evaluation(2.0, ra_rlhf=(kl, values))


def test_a_cell_is_held_against_rlhfs_curve_at_its_own_kl() -> None:
    half = ((1.0 + 3.0**0.5) / 2) ** 2  # in sqrt(KL) half way from 1 to 3 nats, where the curve has 2 and 3
    cells = {
        "worst": cell("episode_return", [half, half], [2.5, 3.5]),
        "random": cell("random", [half, 5.0], [2.0, 9.0], "pay_kl"),
        "far": cell("value", [5.0, 5.0], [9.0, 9.0]),
        **FIXED,
    }
    table = explain("explanations", cells, CHOSEN)
    assert table is not None
    worst, random, far, *curve = table.rows
    assert [of_seed.kl for of_seed in table.reference] == [(0.0, 1.0, 3.0)] * 2
    assert worst.above["reward_mean"] is not None
    assert worst.above["reward_mean"]["per_seed"] == pytest.approx([0.5, 0.5])
    assert random.above["reward_mean"] is not None
    assert random.above["reward_mean"]["per_seed"] == pytest.approx([0.0])
    assert far.above["reward_mean"] is None  # the curve ends at 3 nats
    assert [row.above for row in curve] == [{}, {}]
    assert worst.deciles.tolist() == pytest.approx([0.2] * 10)

    page = explanations_page(table)
    assert "| RA-RLHF worst | +0.50 | +0.50 | +0.50 | 2 |" in page.markdown  # no spread at all, so no interval
    assert "| RA-RLHF far | – | – | – | 0 |" in page.markdown
    assert "it ends at 3.00, 3.00 nats" in page.terminal
    heading, *lines = page.rows
    assert all(len(line) == len(heading) for line in lines)
    assert len(lines) == 5 * (5 + 10)
    assert page.png is not None and page.png.startswith(b"\x89PNG")


def test_without_the_curve_there_is_no_page() -> None:
    assert explain("explanations", {"worst": cell("value", [2.0, 2.0], [1.0, 1.0])}, CHOSEN) is None
