import matplotlib as mpl
import numpy as np
import pytest

from rarlhf.evaluation.curves import cvar_curves, quantile_curves
from rarlhf.evaluation.evaluate import evaluate
from rarlhf.evaluation.figures import (
    COLOURS,
    _apart,
    outcome_cvar,
    png,
    reward_distribution,
    reward_quantiles,
    trade_off,
    training_curves,
)
from rarlhf.evaluation.rows import stacked
from rarlhf.params import METHODS


def texts(figure) -> str:
    return " ".join(t.get_text() for axis in figure.axes for t in [*axis.texts, axis.title, axis._left_title])


def run(iterations: int, kept: float) -> dict[str, np.ndarray]:
    steps = np.arange(1.0, iterations + 1)
    return {
        "iteration": steps,
        "score_mean": steps,
        "score_cvar": -steps,
        "kl": steps,
        "kl_coef": steps,
        "kept": 0 * steps + kept,
    }


def test_every_method_has_one_colour() -> None:
    assert set(COLOURS) == set(METHODS)
    assert len(set(COLOURS.values())) == len(METHODS)


def test_lines_are_labelled_at_their_ends(tables) -> None:
    for figure in (reward_quantiles(quantile_curves(tables)), outcome_cvar(cvar_curves(tables))):
        assert "Base SFT RLHF RA-RLHF" in texts(figure)
        axis = figure.axes[0]
        assert axis.get_xlabel()
        assert "(score units)" in axis.get_ylabel()


def test_distribution_puts_the_base_behind_every_other_method(tables) -> None:
    scores = {method: stacked(by_seed, "scores").reshape(-1) for method, by_seed in tables.items()}
    figure = reward_distribution(scores)
    assert [axis._left_title.get_text() for axis in figure.axes] == ["SFT", "RLHF", "RA-RLHF"]
    assert len(reward_distribution({"base": scores["base"]}).axes) == 1
    assert "CVaR 10%" in texts(figure)


@pytest.mark.parametrize(
    ("scores", "side"),
    [(np.linspace(0, 1, 101), "left"), (np.array([0.0] + [0.9] * 9 + [1.0] * 90), "right")],  # CVaR 10 %: .05, .81
)
def test_the_tails_label_lies_within_its_panel(scores: np.ndarray, side: str) -> None:
    [label] = reward_distribution({"sft": scores}).axes[0].texts
    assert label.get_ha() == side  # the side of the text that touches the line


def test_equal_rewards_can_be_drawn() -> None:
    assert png(reward_distribution({"sft": np.ones(5)}))


def test_training_curves_need_a_run_and_show_the_target() -> None:
    assert training_curves({}, 2.0) is None
    figure = training_curves({"rlhf": {1: run(5, 8)}, "ra_rlhf": {1: run(5, 3)}}, 2.0)
    assert figure is not None
    assert len(figure.axes) == 5
    assert "target 2" in texts(figure)
    assert "CVaR 10 %" in texts(figure)
    assert figure.axes[-1].get_ylim()[0] == 0


def test_trade_off_shows_every_method(tables, perplexities, params) -> None:
    assert texts(trade_off(evaluate(tables, perplexities, params))).count("RLHF") == 4  # two panels, two methods


def test_equal_data_give_equal_bytes_whatever_the_callers_style(tables) -> None:
    first = png(reward_quantiles(quantile_curves(tables)))
    with mpl.rc_context({"font.size": 30, "axes.grid": False}):
        second = png(reward_quantiles(quantile_curves(tables)))
    assert first == second
    assert first.startswith(b"\x89PNG")
    assert b"Software" not in first


def test_labels_that_touch_move_apart_and_keep_their_order() -> None:
    assert _apart([0.5, 0.1, 0.52], gap=0.1) == pytest.approx([0.46, 0.1, 0.56])
    assert _apart([0.9, 0.3, 0.1], gap=0.1) == pytest.approx([0.9, 0.3, 0.1])
    # a moved pair pushes into a third: all three around their common centre 0.3
    assert _apart([0.3, 0.3, 0.3], gap=0.2) == pytest.approx([0.1, 0.3, 0.5])
