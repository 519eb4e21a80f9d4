"""Plans of several methods side by side; their files are tested with stage `plan`."""

from pathlib import Path

import numpy as np
import pytest
import torch

from rarlhf.config.baselines import BestOfNParams, RejectionParams, SoftRejectionParams, chosen
from rarlhf.config.methods import Method
from rarlhf.config.params import Params
from rarlhf.data.acceptance import expected_nats, threshold_at
from rarlhf.decoding.draws import SoftRejection
from rarlhf.risk.plan import Aim, Answers, mean_kl, solve, weighted_cvar
from rarlhf.risk.planned import at_one_level, method_values, planned_settings, plans_of, read_settings, rounded
from rarlhf.system.files import write_json

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


SOFT = SoftRejectionParams(n=64, alpha=0.2, eta="plan", kl_coef="plan")


@pytest.fixture
def answers() -> Answers:
    """Scores of 30 prompts with 16 answers each."""
    draws = np.random.default_rng(8)
    return Answers(draws.normal(size=(30, 16)) + draws.normal(size=(30, 1)))


def test_soft_rejection_is_planned_as_the_weighted_answers_are(answers: Answers) -> None:
    values = planned_settings(SOFT, answers, 0.5)
    plan = solve(answers, Aim(1.0, 0.2), 0.5)
    assert values == {"n": 64, "alpha": 0.2, "eta": rounded(plan.eta), "kl_coef": rounded(plan.kl_coef)}
    rule = SoftRejection(SoftRejectionParams.model_validate(values), lambda _: torch.zeros(1))
    chances = rule.log_acceptance(torch.from_numpy(answers.scores)).exp().numpy()
    weights = chances / chances.sum(axis=1, keepdims=True)  # the distribution of accepted answers, among these
    assert mean_kl(answers, weights) == pytest.approx(0.5, abs=1e-4)
    assert weighted_cvar(answers, weights, 0.2) == pytest.approx(plan.cvar, abs=1e-4)


def test_numbers_that_are_given_stay(answers: Answers) -> None:
    exact = 0.123456789012  # more digits than a plan keeps
    both = planned_settings(SOFT.model_copy(update={"eta": exact, "kl_coef": 2.5}), answers, 0.5)
    assert (both["eta"], both["kl_coef"]) == (exact, 2.5)
    eta = planned_settings(SOFT.model_copy(update={"eta": exact}), answers, 0.5)
    assert eta["eta"] == exact
    assert eta["kl_coef"] == rounded(solve(answers, Aim(1.0, 0.2), 0.5, exact).kl_coef)
    beta = planned_settings(SOFT.model_copy(update={"kl_coef": 2.5}), answers, 0.5)
    assert (beta["eta"], beta["kl_coef"]) == (rounded(solve(answers, Aim(1.0, 0.2), 0.5).eta), 2.5)
    given = RejectionParams(n=8, threshold=exact)
    assert planned_settings(given, answers, 0.5) == {"n": 8, "threshold": exact}
    assert planned_settings(BestOfNParams(n=3), answers, 0.5) == {"n": 3}


def test_rejection_is_planned_at_the_target(answers: Answers) -> None:
    for target in (0.2, 1.0):
        values = planned_settings(RejectionParams(n=32, threshold="plan"), answers, target)
        threshold = float(values["threshold"])  # type: ignore[arg-type]
        assert threshold == rounded(threshold_at(answers.scores, target, 32))
        shares = (answers.scores >= threshold - 1e-5).mean(axis=1)
        assert expected_nats(shares, 32).mean() == pytest.approx(target, abs=0.02)


def test_settings_are_read_as_the_plan_wrote_them(answers: Answers, params: Params, tmp_path: Path) -> None:
    entry = {"rule": "soft_rejection", "of": "sft", "alpha": 0.2}
    soft = chosen("decoded", entry, params.decoding)
    made = Method("soft", "decoded", chosen=soft)
    assert method_values(made)["of"] == "sft"
    values = planned_settings(soft.settings, answers, 0.5)
    write_json(tmp_path / "soft.json", method_values(made) | values)
    read = read_settings(soft, tmp_path / "soft.json")
    assert isinstance(read, SoftRejectionParams)
    assert read.model_dump() == values
    assert "plan" not in values.values()
