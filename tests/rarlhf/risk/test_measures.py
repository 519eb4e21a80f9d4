"""Risk measures against the worked numbers, and their identities."""

from collections.abc import Callable
from fractions import Fraction
from math import exp, log
from pathlib import Path
from typing import get_args

import pytest
import torch

from rarlhf.config.exact import WITHOUT_LEVEL
from rarlhf.config.params import Params, RiskParams
from rarlhf.data.batches import query_batch
from rarlhf.risk.hard_prompts import HardPrompts
from rarlhf.risk.measures import MEASURES, risk_measure
from rarlhf.risk.measures.cvar import weighted_count
from rarlhf.risk.measures.cvar_ru import tail_utility
from rarlhf.risk.measures.entropic import entropic_utility, entropic_value, log_weights
from rarlhf.risk.measures.evar import evar, evar_temperature
from rarlhf.risk.schedule import RiskLevel
from rarlhf.risk.tail import cvar
from rarlhf.rl.ppo import PPOTrainer
from tests.rarlhf.risk.batches import BETA, HALF, ONE, RETURNS, REWARDS, at_the_end, batch, measure

RU = [-5.2, -1.2, -0.8, -0.8]  # utilities of `cvar_ru` of RETURNS at alpha .5: eta is -1
WITH_LEVEL = [name for name in MEASURES if name not in WITHOUT_LEVEL]
# Measures whose value cannot fall if every return rises. A mean less a share of the spread would not be one of them.
MONOTONE = ("none", "cvar", "cvar_ru", "entropic", "evar", "mean_cvar")
SAMPLE = torch.randn(41, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * 2.0


def test_the_params_know_the_measures() -> None:
    assert set(get_args(RiskParams.model_fields["measure"].annotation)) == set(MEASURES)
    assert set(WITHOUT_LEVEL) == {name for name, measure in MEASURES.items() if "alpha" not in measure.reads}


def test_none_takes_all_as_they_are(params: Params) -> None:
    treated = measure(params, measure="none").treat(batch(), ONE)
    assert torch.equal(treated.rewards, REWARDS)
    assert treated.kept.all()
    assert measure(params, measure="none").value(RETURNS, ONE) == -0.5


def test_cvar_keeps_the_worst_and_leaves_their_rewards(params: Params) -> None:
    treated = measure(params, measure="cvar").treat(batch(), ONE)
    assert treated.kept.tolist() == [True, True, False, False]
    assert torch.equal(treated.rewards, REWARDS)
    assert measure(params, measure="cvar").value(RETURNS, ONE) == -2.0
    # alpha .4 of 4 keeps ceil(1.6) = 2 whole episodes
    assert measure(params, measure="cvar", alpha=0.4).value(RETURNS, ONE) == -2.0


def test_cvar_keeps_the_worst_by_the_ranking_that_is_asked_for(params: Params) -> None:
    """`risk.ranking` may be another than the return."""
    ranked = batch()._replace(ranking=torch.tensor([4.0, 1.0, 3.0, 2.0]))
    assert measure(params, measure="cvar").treat(ranked, ONE).kept.tolist() == [False, True, False, True]


def test_cvar_keeps_the_share_of_the_weight(params: Params) -> None:
    """Where hard prompts are drawn more often, more of the episodes make up the same share of p."""
    kept = [
        measure(params, measure="cvar")
        .treat(batch(weights=[Fraction(w) for w in weights.split()]), ONE)
        .kept.sum()
        .item()
        for weights in ("1 1 1 1", ".5 .5 .5 2", "4 1 1 1", ".6 .6 .6 .2")
    ]
    # half of 4 is 2 of weight: two episodes; half of 3.5 is 1.75, passed within the fourth; half of 7 within the first;
    # half of 2 is 1, passed within the second
    assert kept == [2, 4, 1, 2]


def test_the_share_of_equal_weights_is_the_count_of_the_schedule() -> None:
    """In floats 0.28 x 25 is above 7, and 13 of these 12,573 cases are off."""
    for size in range(1, 128):
        ranking = torch.zeros(size)
        for percent in range(1, 100):
            level = Fraction(percent, 100)
            for weight in (ONE, Fraction(10, 13)) if percent % 28 == 0 else (ONE,):
                assert weighted_count(ranking, [weight] * size, level) == RiskLevel(ONE, level).kept(size), (
                    size,
                    level,
                )


def test_a_share_of_unlike_weights_is_exact() -> None:
    # lambda .4, alpha .1: p / q is 1 / 4.6 for hard prompts and 1 / .6 for others; 3 of 7 hard ones hold a tenth of
    # 7 x 5/23 + 3 x 5/3 = 150/23. In floats they fall short of it.
    values = torch.tensor([0.0] * 7 + [1.0] * 3)
    weights = HardPrompts([], 0.4, seed=1).weights(values, 0.0, Fraction("0.1"))
    assert weighted_count(values, weights, Fraction("0.1")) == 3
    assert weighted_count(values, weights, Fraction("0.1001")) == 4


def test_weights_are_counted_from_the_lowest_ranking_on(params: Params) -> None:
    """Wherever in the batch the lowest stand: half of 7 is 3.5, passed within the fourth of 1, 1, 1, 4."""
    weighted = batch(weights=[4 * ONE, ONE, ONE, ONE])._replace(ranking=torch.tensor([4.0, 3.0, 2.0, 1.0]))
    assert measure(params, measure="cvar").treat(weighted, ONE).kept.tolist() == [True, True, True, True]
    later = weighted._replace(weights=[ONE, ONE, ONE, 4 * ONE])
    assert measure(params, measure="cvar").treat(later, ONE).kept.tolist() == [False, False, False, True]


def test_rockafellar_uryasev_by_hand(params: Params) -> None:
    # eta = R_(2) = -1: shortfalls 2, 0, 0, 0 count twice; the two at or below eta pay beta twice, and all gain it once
    torch.testing.assert_close(tail_utility(RETURNS, -1.0, 0.5, BETA), torch.tensor(RU))
    torch.testing.assert_close(tail_utility(RETURNS, -1.0, 0.5, 0.0), torch.tensor([-5.0, -1.0, -1.0, -1.0]))
    ru = measure(params, measure="cvar_ru")
    treated = ru.treat(batch(), ONE)
    torch.testing.assert_close(treated.rewards, at_the_end(RU))
    assert treated.kept.all()
    assert ru.value(RETURNS, ONE) == -2.0  # -1 - (2 / 4) / .5
    torch.testing.assert_close(measure(params, measure="cvar_ru", alpha=0.4).value(RETURNS, ONE), torch.tensor(-2.25))


def test_a_running_eta_rises_until_the_share_below_it_is_alpha(params: Params) -> None:
    ru = measure(params, measure="cvar_ru", eta="running", eta_rate=0.5)
    assert ru.state == {}
    first = ru.treat(batch(), ONE)  # starts at the quantile -1, below which 2 of 4 are: no step
    torch.testing.assert_close(first.rewards, at_the_end(RU))
    assert ru.state == {"eta": -1.0}
    ru.treat(batch(RETURNS + 5.0), ONE)  # none of 2, 4, 5, 7 is at or below -1: one rate upwards
    assert ru.state == {"eta": -0.5}
    ru.treat(batch(RETURNS - 9.0), ONE)  # all are: 1 - 1 / .5 = -1 rate
    assert ru.state == {"eta": -1.0}


def test_a_fixed_eta_caps_the_values_step_by_step(params: Params) -> None:
    ru = measure(params, measure="cvar_ru", eta=-0.5)
    # below eta 2.5 and .5, twice; above it nothing is gained; beta is paid twice at or below eta, and gained once
    torch.testing.assert_close(ru.treat(batch(), ONE).rewards, at_the_end([-5.7, -1.7, -0.3, -0.3]))
    torch.testing.assert_close(ru.value(RETURNS, ONE), torch.tensor(-2.0))  # -.5 - (3 / 4) / .5
    # half way alpha' is .75 and the slope above eta .5: -.5 - 2.5 / .75, -.5 - .5 / .75, -.5 + .25, -.5 + 1.25, and
    # beta is paid 4/3 - 1 times below, .5 - 1 times above
    half = [-0.5 - 10 / 3 - 0.2 / 3, -0.5 - 2 / 3 - 0.2 / 3, -0.25 + 0.1, 0.75 + 0.1]
    torch.testing.assert_close(ru.treat(batch(), HALF).rewards, at_the_end(half))
    torch.testing.assert_close(ru.value(RETURNS, HALF), torch.tensor((sum(half) + 0.4 / 3 - 0.2) / 4))


@pytest.mark.parametrize("eta", ["batch", "running", -0.5, 7.0])
@pytest.mark.parametrize("name", ["cvar_ru", "mean_cvar", "entropic", "evar"])
def test_utilities_begin_at_the_values(name: str, eta: object, params: Params) -> None:
    """So that the critic's targets do not jump at the first averse iteration."""
    first = Fraction(1, 10_000)
    one = measure(params, measure=name, eta=eta)
    rewards = one.treat(batch(SAMPLE.float()), first).rewards[:, 0]
    torch.testing.assert_close(rewards, SAMPLE.float(), atol=0.05, rtol=0)  # EVaR goes as the root of the progress
    assert one.value(SAMPLE, first).item() == pytest.approx(SAMPLE.mean().item(), abs=0.05)


def test_a_plan_is_replaced_by_its_number_first(params: Params) -> None:
    with pytest.raises(ValueError, match="replace it by the number"):
        measure(params, measure="cvar_ru", eta="plan")


def test_of_the_score_there_is_no_beta_in_the_utility(params: Params) -> None:
    scored = batch()._replace(values=RETURNS.flip(0), kl_coef=0.0)
    for name, utility in {
        "cvar_ru": [-1.0, -1.0, -1.0, -5.0],
        "entropic": [-0.5 - 2.0 * (w - 1.0) for w in (0.1962, 0.5334, 0.8793, 2.3909)],
    }.items():
        treated = risk_measure(params.risk.model_copy(update={"measure": name, "alpha": 0.5, "temperature": 2.0}))
        made = treated.treat(scored, RiskLevel(ONE, HALF)).utility
        assert made is not None
        torch.testing.assert_close(made, torch.tensor(utility), atol=5e-4, rtol=0)


def test_only_measures_that_read_of_are_of_the_score(params: Params) -> None:
    of_score = {name: measure(params, measure=name, of="score").measure.of_score for name in MEASURES}
    assert of_score == {name: name not in ("none", "cvar") for name in MEASURES}
    assert not any(measure(params, measure=name).measure.of_score for name in MEASURES)


def test_entropic_by_hand() -> None:
    # exp(1.5), exp(.5), 1, exp(-1) = 4.4817, 1.6487, 1, .3679: sum 7.4983, mean 1.8746
    weights = log_weights(RETURNS, 2.0).exp()
    torch.testing.assert_close(weights, torch.tensor([2.391, 0.880, 0.533, 0.196]).double(), atol=6e-4, rtol=0)
    assert entropic_value(RETURNS, 2.0).item() == pytest.approx(-2.0 * log(1.8746), abs=1e-4)  # -1.257
    expected = [-0.5 - (2.0 + BETA) * (w - 1.0) for w in weights.tolist()]
    torch.testing.assert_close(entropic_utility(RETURNS, 2.0, BETA), torch.tensor(expected))


def test_entropic_tends_to_the_mean_and_to_the_minimum() -> None:
    assert entropic_value(RETURNS, 1e6).item() == pytest.approx(-0.5, abs=1e-5)
    assert entropic_value(RETURNS, 1e-3).item() == pytest.approx(-3.0, abs=2e-3)
    # a large T keeps its digits: u = R to first order in 1/T, with the KL term or without
    for beta in (0.0, BETA):
        torch.testing.assert_close(entropic_utility(RETURNS, 1e5, beta), RETURNS, atol=1e-4, rtol=0)


def test_entropic_takes_its_temperature_from_the_schedule(params: Params) -> None:
    entropic = measure(params, measure="entropic")
    assert torch.equal(entropic.treat(batch(), Fraction(0)).rewards, REWARDS)
    # T / .5 = 4: exp(.75), exp(.25), 1, exp(-.5) = 2.1170, 1.2840, 1, .6065: mean 1.2519
    assert entropic.value(RETURNS, HALF).item() == pytest.approx(-4.0 * log(1.2519), abs=2e-4)
    half = entropic.treat(batch(), HALF)
    torch.testing.assert_close(half.rewards, at_the_end(entropic_utility(RETURNS, 4.0, BETA).tolist()))


def test_evar_by_hand() -> None:
    assert evar_temperature(RETURNS, HALF) == pytest.approx(1.181, abs=1e-3)
    assert evar(RETURNS, HALF).item() == pytest.approx(-2.470, abs=1e-3)
    weights = log_weights(RETURNS, evar_temperature(RETURNS, HALF)).exp()
    torch.testing.assert_close(weights, torch.tensor([3.132, 0.576, 0.247, 0.045]).double(), atol=1e-3, rtol=0)


def test_evar_is_the_supremum_over_temperatures() -> None:
    for level in (Fraction(1, 10), Fraction(3, 10), Fraction(4, 5)):
        grid = [exp(k / 100) for k in range(-700, 700)]
        best = max(entropic_value(SAMPLE, t).item() + t * log(level) for t in grid)
        assert evar(SAMPLE, level).item() == pytest.approx(best, abs=1e-3)


def test_evar_is_the_minimum_where_enough_episodes_are_there() -> None:
    returns = torch.tensor([-1.0, -1.0, 3.0])  # 2 of 3 at the minimum
    assert evar_temperature(returns, HALF) == 0.0
    assert evar(returns, HALF) == -1.0
    assert evar_temperature(returns, Fraction(9, 10)) > 0.0
    assert evar_temperature(torch.full((5,), 2.0), HALF) == 0.0  # all equal


def test_evar_at_the_minimum_pays_only_the_kl_there(params: Params) -> None:
    returns = torch.tensor([-1.0, -1.0, 3.0])
    treated = measure(params, measure="evar").treat(batch(returns), ONE)
    # mean 1/3; w is 3/2 on two of three: -.2 x .5, and + .2 on the third
    torch.testing.assert_close(treated.rewards[:, 0], 1 / 3 + torch.tensor([-0.1, -0.1, 0.2]))
    bad = torch.tensor([-1.0, -1.0, -0.5, 9.0])  # below the mean, and not at the minimum
    treated = measure(params, measure="evar").treat(batch(bad), ONE)
    torch.testing.assert_close(treated.rewards[:, 0], 6.5 / 4 + torch.tensor([-0.2, -0.2, 0.2, 0.2]))


def test_mean_cvar_by_hand(params: Params) -> None:
    mixed = measure(params, measure="mean_cvar")
    assert mixed.value(RETURNS, ONE) == -1.25  # (-.5 - 2) / 2
    assert measure(params, measure="mean_cvar", mix=0.25).value(RETURNS, ONE) == -0.875  # (3 x -.5 - 2) / 4
    treated = mixed.treat(batch(), ONE)
    # half of each reward, and half of the utility of CVaR at the end
    torch.testing.assert_close(treated.rewards, 0.5 * REWARDS + 0.5 * at_the_end(RU))


def test_mean_cvar_ends_in_its_two_parts(params: Params) -> None:
    tail = measure(params, measure="cvar_ru").treat(batch(), ONE).rewards
    torch.testing.assert_close(measure(params, measure="mean_cvar", mix=1.0).treat(batch(), ONE).rewards, tail)
    assert torch.equal(measure(params, measure="mean_cvar", mix=0.0).treat(batch(), ONE).rewards, REWARDS)


@pytest.mark.parametrize("name", MEASURES)
def test_every_measure_begins_risk_neutral_bit_for_bit(name: str, params: Params) -> None:
    treated = measure(params, measure=name).treat(batch(), Fraction(0))
    assert torch.equal(treated.rewards, REWARDS)
    assert treated.kept.all()
    assert measure(params, measure=name).value(SAMPLE, Fraction(0)) == SAMPLE.mean()


@pytest.mark.parametrize("name", WITH_LEVEL)
def test_half_way_through_the_schedule_so_is_the_level(name: str, params: Params) -> None:
    # alpha .5: 1 - .5 x .5 = .75
    half, there = measure(params, measure=name), measure(params, measure=name, alpha=0.75)
    assert half.alpha(HALF) == there.alpha(ONE) == Fraction(3, 4)
    one, other, end = half.treat(batch(), HALF), there.treat(batch(), ONE), half.treat(batch(), ONE)
    assert torch.equal(one.rewards, other.rewards)
    assert torch.equal(one.kept, other.kept)
    assert half.value(SAMPLE, HALF) == there.value(SAMPLE, ONE) > half.value(SAMPLE, ONE)
    assert not torch.equal(one.rewards, end.rewards) or not torch.equal(one.kept, end.kept)


@pytest.mark.parametrize("name", WITHOUT_LEVEL)
def test_a_measure_without_a_tail_has_the_level_one_throughout(name: str, params: Params) -> None:
    assert {measure(params, measure=name).alpha(progress) for progress in (Fraction(0), HALF, ONE)} == {1}


@pytest.mark.parametrize("name", ["none", *WITH_LEVEL])
def test_alpha_one_is_risk_neutral_bit_for_bit(name: str, params: Params) -> None:
    treated = measure(params, measure=name, alpha=1.0).treat(batch(), ONE)
    assert torch.equal(treated.rewards, REWARDS)
    assert treated.kept.all()


@pytest.mark.parametrize("seed", range(20))
def test_evar_below_cvar_below_mean(seed: int) -> None:
    draws = torch.Generator().manual_seed(seed)
    returns = torch.randn(2 + seed, generator=draws, dtype=torch.float64) * 10.0 ** (seed % 5 - 2)
    returns = torch.cat([returns, returns[: seed % 3]])  # ties
    for level in (Fraction(k, 20) for k in range(1, 21)):
        slack = 1e-9 * float(returns.abs().max())
        assert evar(returns, level) <= cvar(returns, level) + slack
        assert cvar(returns, level) <= returns.mean() + slack


@pytest.mark.parametrize("name", MEASURES)
def test_no_measure_is_above_the_mean_and_all_move_with_their_input(name: str, params: Params) -> None:
    one = measure(params, measure=name, alpha=0.3)
    assert one.value(SAMPLE, ONE) <= SAMPLE.mean() + 1e-12
    torch.testing.assert_close(one.value(SAMPLE + 3.0, ONE), one.value(SAMPLE, ONE) + 3.0)


@pytest.mark.parametrize("name", MONOTONE)
def test_returns_that_are_better_everywhere_are_not_worse(name: str, params: Params) -> None:
    one = measure(params, measure=name, alpha=0.3)
    assert one.value(SAMPLE + SAMPLE.abs(), ONE) >= one.value(SAMPLE, ONE)


def test_a_running_eta_is_taken_up_by_a_resumed_run(make_trainer: Callable[..., PPOTrainer], tmp_path: Path) -> None:
    queries, path = [[5], [6, 7], [8]] * 2, tmp_path / "checkpoint.safetensors"
    edits = {
        "risk.measure": "cvar_ru",
        "risk.eta": "running",
        "risk.eta_rate": 0.3,
        "ppo.iterations": 6,
        "ppo.checkpoint_every": 4,
    }
    whole = make_trainer(**edits)
    whole.train(queries, path)  # leaves the checkpoint of iteration 4
    resumed, forgetful = make_trainer(**edits), make_trainer(**edits)
    resumed.train(queries, path)
    assert resumed.measure.state == whole.measure.state != {}
    assert weights_equal(resumed, whole)
    forgetful.restore(path)
    forgetful.measure.state = {}
    for iteration in (5, 6):
        batch = query_batch(queries, iteration - 1, 6, forgetful.seed)
        forgetful.step(forgetful.collect_rollout(batch, iteration), iteration)
    assert not weights_equal(forgetful, whole)  # negative control


def weights_equal(one: PPOTrainer, other: PPOTrainer) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.policy.parameters(), other.policy.parameters(), strict=True))
