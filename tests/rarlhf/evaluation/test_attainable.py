from dataclasses import replace

import numpy as np
import pytest

from rarlhf.config.errors import UserError
from rarlhf.evaluation.attainable import LEAST_KL, Attainable, Prompts, at_kl, attainable, sentences, shares
from rarlhf.evaluation.generations import Generations
from rarlhf.risk.plan import Aim, Answers, solve

RANDOM = np.random.default_rng(5)
SAMPLES = RANDOM.normal(size=(40, 1)) * 0.6 + RANDOM.normal(size=(40, 32))
OF = Prompts(ids=np.arange(40), scores=np.linspace(-1, 1, 40))


@pytest.fixture(scope="module")
def curves(params) -> Attainable:
    return attainable(SAMPLES, OF, params.evaluate)


def at(table: Generations, kl: float, scores: np.ndarray) -> Generations:
    return replace(table, kl=np.full_like(table.kl, kl), scores=scores)


def test_the_curves_start_at_sft_and_rise_to_the_cap(curves: Attainable) -> None:
    assert (curves["prompts"], curves["samples"], curves["tail_prompts"]) == (40, 32, 4)
    assert curves["kl"][0] == 0 and curves["kl"][-1] == pytest.approx(curves["kl_cap"])
    assert curves["kl_cap"] < np.log(32)
    assert curves["metrics"]["reward_mean"][0] == pytest.approx(SAMPLES.mean())
    assert curves["metrics"]["reward_prompt_tail"][0] == pytest.approx(SAMPLES[:4].mean())
    for metric in ("reward_mean", "reward_cvar_10"):
        assert np.diff(curves["metrics"][metric]).min() > 0


def test_between_its_points_a_curve_is_what_the_plan_finds_there(curves: Attainable) -> None:
    for kl in (0.1, 0.7, 1.3):
        mean, cvar = (solve(Answers(SAMPLES), Aim(mix, 0.1), kl) for mix in (0.0, 1.0))
        assert at_kl(curves, "reward_mean", kl) == pytest.approx(mean.mean, abs=0.01)
        assert at_kl(curves, "reward_cvar_10", kl) == pytest.approx(cvar.cvar, abs=0.02)
    assert at_kl(curves, "reward_mean", curves["kl_cap"] + 0.01) is None
    assert at_kl(curves, "reward_mean", -0.01) is None


def test_a_share_is_the_rise_over_the_attainable_rise_at_the_methods_own_kl(tables, curves, params) -> None:
    start = tables["sft"][1]
    moved = {"sft": {1: start}, "rlhf": {1: at(start, 1.0, start.scores + 0.5)}}
    found, known = shares(moved, curves, OF, params.evaluate)
    for metric, share in (("reward_mean", "share_mean"), ("reward_cvar_10", "share_cvar_10")):
        best = at_kl(curves, metric, 1.0)
        assert best is not None
        assert found["rlhf"][share]["per_seed"] == [pytest.approx(0.5 / (best - curves["metrics"][metric][0]))]
    assert set(found["rlhf"]) == {"share_mean", "share_prompt_tail", "share_cvar_10"}
    assert known["left_out"] == {} and "sft" not in found


def test_a_policy_of_the_weights_themselves_has_the_whole_share(tables, curves, params) -> None:
    """Answers drawn by the weights of the best mean: their mean is the attainable, up to the choice of draws."""
    answers = Answers(SAMPLES)
    plan = solve(answers, Aim(0.0, 0.1), 1.0)
    weights = np.exp(SAMPLES / plan.kl_coef)
    weights /= weights.sum(axis=1, keepdims=True)
    drawn = np.stack([np.random.default_rng(1).choice(s, 500, p=w) for s, w in zip(SAMPLES, weights, strict=True)])
    start = tables["sft"][1]
    own = {"sft": {1: replace(start, scores=SAMPLES, kl=0 * SAMPLES)}, "rlhf": {1: at(start, plan.kl, drawn)}}
    found, _ = shares(own, curves, OF, params.evaluate)
    assert found["rlhf"]["share_mean"]["mean"] == pytest.approx(1.0, abs=0.03)


def test_beyond_what_the_samples_hold_there_is_no_share_and_the_report_says_why(tables, curves, params) -> None:
    start = tables["sft"][1]
    moved = {
        "sft": {1: start, 2: start},
        "rlhf": {1: at(start, 1.0, start.scores + 0.5), 2: at(start, 9.0, start.scores + 0.5)},
        "ra_rlhf": {1: at(start, LEAST_KL / 2, start.scores), 2: at(start, 1.0, start.scores)},
    }
    found, known = shares(moved, curves, OF, params.evaluate)
    assert found == {}
    told = sentences(known, list(found))
    assert told[0].startswith("RLHF has no share of the attainable: its KL is above ")
    assert "in 1 of 2 seeds, more than 32 samples to a prompt can show" in told[0]
    assert "RA-RLHF has no share of the attainable: its KL is below 0.05 nats in 1 of 2 seeds" in told[1]
    _, known = shares({"rlhf": moved["rlhf"]}, curves, OF, params.evaluate)
    assert known["left_out"] == {"rlhf": "SFT was not generated with, so no rise over it is known"}
    assert len(sentences(known, ["rlhf"])) == 3


def test_shares_are_on_the_prompts_that_have_samples(tables, params) -> None:
    half = Prompts(ids=np.arange(20) * 2, scores=OF["scores"][::2])
    curves = attainable(SAMPLES[::2], half, params.evaluate)
    start = tables["sft"][1]
    rise = np.where(np.arange(40) % 2 == 0, 0.5, 9.0)[:, None]  # what the other prompts rose by counts for nothing
    found, _ = shares(
        {"sft": {1: start}, "rlhf": {1: at(start, 1.0, start.scores + rise)}}, curves, half, params.evaluate
    )
    best = at_kl(curves, "reward_mean", 1.0)
    assert best is not None
    assert found["rlhf"]["share_mean"]["mean"] == pytest.approx(0.5 / (best - curves["metrics"]["reward_mean"][0]))
    other = Prompts(ids=np.arange(20) + 39, scores=half["scores"])
    with pytest.raises(UserError, match="test prompt 40 has samples and no generations"):
        shares({"sft": {1: start}, "rlhf": {1: at(start, 1.0, start.scores)}}, curves, other, params.evaluate)


def test_without_a_tail_among_the_prompts_there_is_no_share_of_it(tables, params) -> None:
    low = params.evaluate.model_copy(update={"tail_quantile": None, "tail_threshold": -5.0})
    curves = attainable(SAMPLES, OF, low)
    start = tables["sft"][1]
    found, _ = shares({"sft": {1: start}, "rlhf": {1: at(start, 1.0, start.scores)}}, curves, OF, low)
    assert set(found["rlhf"]) == {"share_mean", "share_cvar_10"}
    assert curves["tail_prompts"] == 0


def test_where_nothing_is_attainable_there_is_no_share(tables, curves, params) -> None:
    flat = Attainable(**{**curves, "metrics": curves["metrics"] | {"reward_cvar_10": [1.0] * len(curves["kl"])}})
    start = tables["sft"][1]
    moved = {"sft": {1: start}, "rlhf": {1: at(start, 1.0, start.scores + 0.5)}}
    found, known = shares(moved, flat, OF, params.evaluate)
    assert set(found["rlhf"]) == {"share_mean", "share_prompt_tail"} and known["left_out"] == {}
