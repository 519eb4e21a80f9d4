from copy import deepcopy

import pytest

from rarlhf.config.methods import colours_of
from rarlhf.evaluation.comparisons import Evaluation, compare_methods
from rarlhf.evaluation.forest import GREY, differences, shares
from rarlhf.evaluation.statistics import over_seeds


@pytest.fixture
def evaluation(tables, perplexities, params) -> Evaluation:
    return deepcopy(compare_methods(tables, perplexities, params))


def test_a_row_has_its_interval_its_mean_and_its_seeds(evaluation: Evaluation) -> None:
    pair = evaluation["comparisons"]["ra_rlhf_minus_rlhf"]
    pair["metrics"]["reward_prompt_tail"] |= {"mean": 0.5, "interval": [0.2, 0.8], "per_seed": [0.4, 0.5, 0.6]}
    drawing = differences(evaluation, colours_of(evaluation["methods"]))
    assert drawing is not None
    axes = drawing.figure().axes
    assert [axis.get_title(loc="left") for axis in axes] == ["CVaR 10 %", "prompt tail", "mean reward"]
    zero, interval, mean = axes[1].lines
    assert list(zero.get_xdata()) == [0, 0]
    assert list(interval.get_xdata()) == [0.2, 0.8]
    assert list(mean.get_xdata()) == [0.5]
    assert axes[1].collections[0].get_offsets()[:, 0].tolist() == [0.4, 0.5, 0.6]
    assert "prompt tail +0.50 [0.20, 0.80]" in drawing.text


@pytest.mark.parametrize(("alike", "label", "colour"), [(True, "RA-RLHF", "#c24e00"), (False, "RA-RLHF †", GREY)])
def test_a_pair_at_unlike_kl_is_grey_and_marked(evaluation: Evaluation, alike: bool, label: str, colour: str) -> None:
    evaluation["comparisons"]["ra_rlhf_minus_rlhf"]["like_kl"] = alike
    drawing = differences(evaluation, colours_of(evaluation["methods"]))
    assert drawing is not None
    axis = drawing.parts()[0].axes[0]
    (tick,) = axis.get_yticklabels()
    assert (tick.get_text(), tick.get_color()) == (label, colour)
    assert {line.get_color() for line in axis.lines[1:]} == {colour}
    assert drawing.text.startswith(f"{label}: ")


def test_without_an_interval_there_is_no_line(evaluation: Evaluation) -> None:
    evaluation["comparisons"]["ra_rlhf_minus_rlhf"]["metrics"]["reward_cvar_10"]["interval"] = None
    drawing = differences(evaluation, colours_of(evaluation["methods"]))
    assert drawing is not None
    assert len(drawing.parts()[0].axes[0].lines) == 2  # zero and the mean


def test_without_a_pair_there_is_no_figure(tables, perplexities, params) -> None:
    two = {method: tables[method] for method in ("sft", "rlhf")}
    assert differences(compare_methods(two, perplexities, params), colours_of(two)) is None


def test_shares_are_those_that_were_computed_in_percent(evaluation: Evaluation) -> None:
    colours = colours_of(evaluation["methods"])
    assert shares(evaluation, colours) is None
    evaluation["methods"]["rlhf"]["share_mean"] = over_seeds([0.8, 0.9, 1.0])
    drawing = shares(evaluation, colours)
    assert drawing is not None and drawing.text == "mean reward: RLHF 90 %."
    (axis,) = drawing.figure().axes
    whole, interval, mean = axis.lines
    assert list(whole.get_xdata()) == [100, 100]
    assert list(mean.get_xdata()) == [pytest.approx(90)]
    assert list(interval.get_xdata()) == pytest.approx([90 - 24.84, 90 + 24.84], abs=0.01)  # 4.303 x 10 / sqrt(3)
