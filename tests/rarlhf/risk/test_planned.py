"""Plans of several methods side by side; their files are tested with stage `plan`."""

import numpy as np
import pytest

from rarlhf.config.methods import Method
from rarlhf.config.params import Params
from rarlhf.risk.plan import Answers
from rarlhf.risk.planned import at_one_level, plans_of

COIN = Answers(np.array([[0.0, 1.0]]))  # one prompt with two answers


def method(name: str, params: Params, **risk: object) -> Method:
    changes: dict[str, object] = {"measure": "cvar_ru", "of": "score", "eta": "plan", **risk}
    return Method(name, "fit", params.risk.model_copy(update=changes))


def cvar_of_coin(mean: float, level: float) -> float:
    """The worst `level` share of outcomes 0 and 1, of which a share `mean` is 1; no more than `level` is 0."""
    return (level - (1 - mean)) / level


def test_all_cvars_are_at_the_level_of_the_first_method_that_plans_one(params: Params) -> None:
    mean, first, second = (
        method("mean", params, measure="none", alpha=0.9),
        method("first", params, alpha=0.5),
        method("second", params, alpha=0.8),
    )
    methods = [Method("sft", "sft"), mean, first, second]
    plans = plans_of(methods, COIN, 0.1)
    level, shown = at_one_level(methods, plans, COIN, 0.6)
    assert level == 0.5
    assert list(shown) == ["mean", "first", "second"]
    assert shown["first"] == plans["first"]
    for name, plan in shown.items():
        assert plan.mean == plans[name].mean == pytest.approx(0.72, abs=0.01)  # 0.72 ln 1.44 + 0.28 ln 0.56 = 0.10
        assert plan.cvar == pytest.approx(cvar_of_coin(plan.mean, 0.5))
    assert plans["second"].cvar == pytest.approx(cvar_of_coin(plans["second"].mean, 0.8))  # its own level


def test_without_a_plan_of_a_cvar_the_level_is_the_given_one(params: Params) -> None:
    methods = [method("mean", params, measure="none", alpha=0.9)]
    plans = plans_of(methods, COIN, 0.1)
    level, shown = at_one_level(methods, plans, COIN, 0.6)
    assert level == 0.6
    assert shown["mean"].cvar == pytest.approx(cvar_of_coin(shown["mean"].mean, 0.6))
    assert at_one_level([], {}, COIN, 0.6) == (0.6, {})
