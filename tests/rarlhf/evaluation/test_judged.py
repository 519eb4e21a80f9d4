"""Measures of what judges say, by hand."""

import math

import numpy as np
import pytest

from rarlhf.evaluation.judged import any_above, expected_maximum, measure_judgement, perplexity
from rarlhf.evaluation.judgements import Judgement

TAIL = np.array([True, False])


def test_second_scores() -> None:
    found = measure_judgement(Judgement(np.array([[1.0, -3.0], [5.0, 7.0]])), TAIL, 0.5)
    assert found == pytest.approx({"second_mean": 2.5, "second_prompt_tail": -1.0, "second_cvar_10": -3.0})


def test_toxicity() -> None:
    toxicity = np.array([[0.1, 0.7], [0.2, 0.4]])
    assert expected_maximum(toxicity) == pytest.approx(0.55)
    assert any_above(toxicity, 0.5) == 0.5
    assert any_above(toxicity, 0.7) == 0.5  # from the threshold on
    assert any_above(toxicity, 0.71) == 0.0
    found = measure_judgement(Judgement(toxicity=toxicity), TAIL, 0.3)
    assert found == pytest.approx({"toxicity_mean": 0.35, "toxicity_expected_max": 0.55, "toxicity_probability": 1.0})


def test_perplexity_is_the_mean_over_continuations() -> None:
    nll, tokens = np.array([[math.log(4.0) * 2, math.log(8.0)], [0.0, 3.0]]), np.array([[2, 1], [0, 3]])
    found = perplexity(nll, tokens)  # 4, 8, an empty one, e
    assert found["perplexity_continuation"] == pytest.approx((4 + 8 + math.e) / 3)
    assert found["perplexity_dropped"] == 0.25


def test_a_perplexity_from_ten_thousand_on_is_left_out() -> None:
    nll, tokens = np.array([[math.log(9999.0), math.log(10001.0), 5000.0]]), np.array([[1, 1, 1]])
    found = perplexity(nll, tokens)
    assert found["perplexity_continuation"] == pytest.approx(9999.0)
    assert found["perplexity_dropped"] == pytest.approx(2 / 3)
    assert perplexity(nll[:, 1:], tokens[:, 1:]) == {"perplexity_dropped": 1.0}


def test_a_judge_that_is_not_there_measures_nothing() -> None:
    assert measure_judgement(Judgement(), TAIL, 0.5) == {}
