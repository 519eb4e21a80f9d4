import matplotlib as mpl
import numpy as np
import pytest

from rarlhf.config.methods import colours_of
from rarlhf.evaluation.curves import cvar_curves, quantile_curves
from rarlhf.evaluation.figures import (
    _apart,
    outcome_cvar,
    png,
    reward_distribution,
    reward_quantiles,
    training_curves,
    value_of_tail,
)
from rarlhf.evaluation.metrics import cvar
from rarlhf.evaluation.pictures import rewards_by_seed


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
        (axis,) = figure.figure().axes
        assert labels(axis) == ["Base", "RA-RLHF", "RLHF", "SFT"]
        assert "%" in axis.get_xlabel()
        assert axis.get_ylabel().endswith("(score units)")


def test_distribution_puts_the_base_behind_every_other_method(tables) -> None:
    scores = rewards_by_seed(tables)
    figure = reward_distribution(scores, colours_of(scores)).figure()
    assert [axis._left_title.get_text() for axis in figure.axes] == ["SFT", "RLHF", "RA-RLHF"]
    assert len(reward_distribution({"base": scores["base"]}, colours_of(["base"])).panels) == 1
    assert "CVaR 10%" in texts(figure)


@pytest.mark.parametrize(
    ("scores", "side"),
    [(np.linspace(0, 1, 101), "left"), (np.array([0.0] + [0.9] * 9 + [1.0] * 90), "right")],  # CVaR 10 %: .05, .81
)
def test_the_tails_label_lies_within_its_panel(scores: np.ndarray, side: str) -> None:
    [label] = reward_distribution({"sft": scores[None]}, colours_of(["sft"])).figure().axes[0].texts
    assert label.get_ha() == side  # the side of the text that touches the line


def test_equal_rewards_are_drawn_as_one_bar_in_the_middle() -> None:
    """A range of no width would give bars of no width, or none."""
    figure = reward_distribution({"sft": np.ones((1, 5))}, colours_of(["sft"])).figure()
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
    drawing = training_curves({"rlhf": {1: run(5, 8)}, "ra_rlhf": {1: run(5, 3)}}, colours_of(["rlhf", "ra_rlhf"]), 2.0)
    assert drawing is not None
    figure = drawing.figure()
    assert len(figure.axes) == 5
    assert "target 2" in texts(figure)
    assert "CVaR 10 %" in texts(figure)
    assert figure.axes[-1].get_ylim()[0] == 0


def test_marks_of_the_tail_are_means_over_seeds() -> None:
    """Ten rewards a seed, so that CVaR 10 % is the lowest: -1 and -3, together -3 and -1 of twenty, so -2."""
    by_seed = np.array([[-1.0] + [1.0] * 9, [-3.0] + [1.0] * 9])
    assert value_of_tail(by_seed, cvar) == -2.0
    assert value_of_tail(np.array([[-1.0] + [1.0] * 9, [-3.0, -3.0] + [1.0] * 8]), cvar) == -2.0  # together -3
    drawing = reward_distribution({"sft": by_seed}, colours_of(["sft"]))
    assert labels(drawing.figure().axes[0]) == ["CVaR 10% = -2.00"]
    assert drawing.text == "CVaR 10 %: SFT -2.00."


def test_panels_are_drawn_together_or_one_by_one(tables) -> None:
    scores = rewards_by_seed(tables)
    drawing = reward_distribution(scores, colours_of(scores))
    together, parts = drawing.figure(), drawing.parts()
    assert len(together.axes) == len(parts) == 3
    assert [tuple(part.get_size_inches()) for part in parts] == [(4.2, 2.5)] * 3
    assert tuple(together.get_size_inches()) == (8.4, 5.0)  # two columns
    assert {axis.get_ylim() for axis in together.axes} == {part.axes[0].get_ylim() for part in parts}


def test_the_text_tells_both_ends_of_the_lines() -> None:
    curves = {"rlhf": np.array([[1.0, 0.0, 3.0], [2.0, 0.0, 4.0]])}
    assert reward_quantiles({"rlhf": np.tile(curves["rlhf"][:, [0]], 100)}, colours_of(curves)).text == (
        "mean reward (score units) from left to right: RLHF 1.50 to 1.50."
    )


def test_equal_data_give_equal_bytes_whatever_the_callers_style(tables) -> None:
    first = png(reward_quantiles(quantile_curves(tables), colours_of(tables)).figure())
    with mpl.rc_context({"font.size": 30, "axes.grid": False}):
        second = png(reward_quantiles(quantile_curves(tables), colours_of(tables)).figure())
    assert first == second
    assert first.startswith(b"\x89PNG")
    assert b"Software" not in first


def test_labels_that_touch_move_apart_and_keep_their_order() -> None:
    assert _apart([0.5, 0.1, 0.52], gap=0.1) == pytest.approx([0.46, 0.1, 0.56])
    assert _apart([0.9, 0.3, 0.1], gap=0.1) == pytest.approx([0.9, 0.3, 0.1])
    # a moved pair pushes into a third: all three around their common centre 0.3
    assert _apart([0.3, 0.3, 0.3], gap=0.2) == pytest.approx([0.1, 0.3, 0.5])
