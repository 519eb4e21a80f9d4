import matplotlib as mpl
import numpy as np
import pytest

from rarlhf.config.methods import colours_of
from rarlhf.evaluation.comparisons import compare_methods
from rarlhf.evaluation.curves import cvar_curves, quantile_curves
from rarlhf.evaluation.figures import (
    _apart,
    outcome_cvar,
    png,
    reward_distribution,
    reward_quantiles,
    trade_off,
    training_curves,
)
from rarlhf.evaluation.generations import stacked


def texts(figure) -> str:
    return " ".join(t.get_text() for axis in figure.axes for t in [*axis.texts, axis.title, axis._left_title])


def labels(axis) -> list[str]:
    """The texts written into a panel, sorted."""
    return sorted(text.get_text() for text in axis.texts)


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


def test_lines_are_labelled_at_their_ends(tables) -> None:
    for figure in (
        reward_quantiles(quantile_curves(tables), colours_of(tables)),
        outcome_cvar(cvar_curves(tables), colours_of(tables)),
    ):
        (axis,) = figure.axes
        assert labels(axis) == ["Base", "RA-RLHF", "RLHF", "SFT"]
        assert "%" in axis.get_xlabel()
        assert axis.get_ylabel().endswith("(score units)")


def test_distribution_puts_the_base_behind_every_other_method(tables) -> None:
    scores = {method: stacked(by_seed, "scores").reshape(-1) for method, by_seed in tables.items()}
    figure = reward_distribution(scores, colours_of(scores))
    assert [axis._left_title.get_text() for axis in figure.axes] == ["SFT", "RLHF", "RA-RLHF"]
    assert len(reward_distribution({"base": scores["base"]}, colours_of(["base"])).axes) == 1
    assert "CVaR 10%" in texts(figure)


@pytest.mark.parametrize(
    ("scores", "side"),
    [(np.linspace(0, 1, 101), "left"), (np.array([0.0] + [0.9] * 9 + [1.0] * 90), "right")],  # CVaR 10 %: .05, .81
)
def test_the_tails_label_lies_within_its_panel(scores: np.ndarray, side: str) -> None:
    [label] = reward_distribution({"sft": scores}, colours_of(["sft"])).axes[0].texts
    assert label.get_ha() == side  # the side of the text that touches the line


def test_equal_rewards_are_drawn_as_one_bar_in_the_middle() -> None:
    """A range of no width would give bars of no width, or none."""
    figure = reward_distribution({"sft": np.ones(5)}, colours_of(["sft"]))
    (axis,) = figure.axes
    outline = axis.patches[0].get_xy()  # (corners, 2): reward and density
    filled = outline[outline[:, 1] > 0, 0]
    low, high = axis.get_xlim()
    assert low < filled.min() <= 1.0 <= filled.max() < high
    assert (filled.max() - filled.min()) * outline[:, 1].max() == pytest.approx(1.0)  # the whole mass
    assert labels(axis) == ["CVaR 10% = 1.00"]
    assert png(figure).startswith(b"\x89PNG")


def test_training_curves_need_a_run_and_show_the_target() -> None:
    assert training_curves({}, {}, 2.0) is None
    figure = training_curves({"rlhf": {1: run(5, 8)}, "ra_rlhf": {1: run(5, 3)}}, colours_of(["rlhf", "ra_rlhf"]), 2.0)
    assert figure is not None
    assert len(figure.axes) == 5
    assert "target 2" in texts(figure)
    assert "CVaR 10 %" in texts(figure)
    assert figure.axes[-1].get_ylim()[0] == 0


def test_trade_off_shows_every_method(tables, perplexities, params) -> None:
    for axis in trade_off(compare_methods(tables, perplexities, params), colours_of(tables)).axes:
        assert labels(axis) == ["Base", "RA-RLHF", "RLHF", "SFT"]


def test_equal_data_give_equal_bytes_whatever_the_callers_style(tables) -> None:
    first = png(reward_quantiles(quantile_curves(tables), colours_of(tables)))
    with mpl.rc_context({"font.size": 30, "axes.grid": False}):
        second = png(reward_quantiles(quantile_curves(tables), colours_of(tables)))
    assert first == second
    assert first.startswith(b"\x89PNG")
    assert b"Software" not in first


def test_labels_that_touch_move_apart_and_keep_their_order() -> None:
    assert _apart([0.5, 0.1, 0.52], gap=0.1) == pytest.approx([0.46, 0.1, 0.56])
    assert _apart([0.9, 0.3, 0.1], gap=0.1) == pytest.approx([0.9, 0.3, 0.1])
    # a moved pair pushes into a third: all three around their common centre 0.3
    assert _apart([0.3, 0.3, 0.3], gap=0.2) == pytest.approx([0.1, 0.3, 0.5])
