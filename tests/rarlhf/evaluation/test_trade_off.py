import numpy as np
import pytest
from matplotlib.transforms import Bbox

from rarlhf.config.methods import colours_of
from rarlhf.evaluation.comparisons import compare_methods
from rarlhf.evaluation.trade_off import free_place, on_axis, trade_off

FRAME = Bbox.from_bounds(0, 0, 200, 200)


@pytest.fixture(scope="module")
def evaluation(tables, perplexities, params):
    return compare_methods(tables, perplexities, params)


def names(axis) -> dict:
    return {text.get_text(): text for text in axis.texts}


def test_each_panel_names_every_method_once_and_apart(evaluation) -> None:
    figure = trade_off(evaluation, colours_of(evaluation["methods"])).figure()
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["CVaR 10 %: the worst answers", "mean reward"]
    for axis in figure.axes:
        assert sorted(text.get_text() for text in axis.texts) == ["Base", "RA-RLHF", "RLHF", "SFT", "target 2"]
        boxes = [text.get_window_extent() for text in axis.texts]
        assert not any(a.overlaps(b) for place, a in enumerate(boxes) for b in boxes[:place])


@pytest.mark.slow
def test_the_attainable_is_drawn_as_far_as_the_axis_goes(evaluation) -> None:
    curves = {
        "kl": [0.0, 1.0, 9.0],
        "metrics": {"reward_mean": [0.0, 2.0, 6.0], "reward_cvar_10": [-2.0, 0.0, 4.0]},
        "best_of_n": {
            "n": [1, 2, 4, 64],
            "kl": [0.0, 0.2, 0.6, 3.1],
            "metrics": {"reward_mean": [0.0, 0.5, 1.0, 3.0], "reward_cvar_10": [-2.0, -1.5, -1.0, 1.0]},
        },
    }
    drawing = trade_off({**evaluation, "attainable": curves}, colours_of(evaluation["methods"]))
    line = drawing.parts()[1].axes[0].lines[0].get_xydata()
    assert line[0].tolist() == [0, 0]
    kl, value = line[-1]
    assert kl == pytest.approx(1.25 * 2.1)  # the highest KL of a seed
    assert value == pytest.approx(2 * np.sqrt(1.25 * 2.1))  # 2 at 1 and 6 at 9: twice the root of the KL
    shown = names(drawing.parts()[0].axes[0])
    assert "attainable" in shown
    assert {"best of 2", "best of 4"} <= set(shown)
    assert not {"best of 1", "best of 64"} & set(shown)  # SFT itself, and one beyond the axis
    assert "attainable" not in names(trade_off(evaluation, colours_of(evaluation["methods"])).parts()[0].axes[0])


def test_a_method_far_out_is_named_at_the_edge(evaluation) -> None:
    far = {name: {**evaluation["methods"]["rlhf"]} for name in ("gedi", "prompted")}
    for spread, kl in zip(far.values(), (12.0, 37.0), strict=True):
        spread["kl_sft"] = {**spread["kl_sft"], "mean": kl, "per_seed": [kl] * 2}
    both = {**evaluation, "methods": evaluation["methods"] | far}
    drawing = trade_off(both, colours_of(both["methods"]))
    for axis in drawing.figure().axes:
        assert axis.get_xlim()[1] == pytest.approx(1.25 * 2.1)  # as without them
        shown = names(axis)
        assert {"GeDi, 12.0", "Prompted, 37.0", "RLHF"} <= set(shown)
        boxes = [text.get_window_extent() for text in shown.values()]
        assert not any(a.overlaps(b) for place, a in enumerate(boxes) for b in boxes[:place])
        right = axis.get_window_extent().x1
        for name in ("GeDi, 12.0", "Prompted, 37.0"):  # at the same reward, so one stands above the other
            assert right - 20 < shown[name].get_window_extent().x1 < right
    assert "GeDi: KL 12.00" in drawing.text


def test_a_method_is_far_out_by_the_target_and_by_the_others() -> None:
    assert on_axis({"a": 0.0, "b": 0.7, "c": 2.9, "d": 3.1}, 0.75) == {"a", "b", "c", "d"}  # their median is 1.8
    assert on_axis({"a": 0.0, "b": 0.2, "c": 2.9, "d": 3.1, "e": 0.7}, 0.75) == {"a", "b", "c", "e"}
    assert on_axis({"a": 0.0, "b": 22.0, "c": 25.0, "d": 30.0}, 4.0) == {"a", "b", "c", "d"}  # none is where it should


def test_the_text_has_the_numbers_of_the_table(evaluation) -> None:
    text = trade_off(evaluation, colours_of(evaluation["methods"])).text
    rlhf = evaluation["methods"]["rlhf"]
    assert f"RLHF: KL 2.10, CVaR 10 % {rlhf['reward_cvar_10']['mean']:.2f}, mean reward " in text


def test_a_name_stands_on_the_outward_side_where_nothing_is() -> None:
    assert free_place((40, 10), np.array([100.0, 100.0]), 0.0, FRAME, []) == pytest.approx((29, 0))  # 40 / 2 + 9
    assert free_place((40, 10), np.array([100.0, 100.0]), np.pi, FRAME, []) == pytest.approx((-29, 0))


def test_a_name_goes_elsewhere_where_its_place_is_taken_or_outside() -> None:
    right = Bbox.from_bounds(105, 95, 60, 10)
    x, y = free_place((40, 10), np.array([100.0, 100.0]), 0.0, FRAME, [right])
    assert not Bbox.from_bounds(80 + x, 95 + y, 40, 10).overlaps(right)
    x, _ = free_place((40, 10), np.array([190.0, 100.0]), 0.0, FRAME, [])
    assert 190 + x + 20 <= 200
    assert free_place((40, 10), np.array([100.0, 100.0]), 0.0, FRAME, [FRAME]) == pytest.approx((29, 0))  # none is free
