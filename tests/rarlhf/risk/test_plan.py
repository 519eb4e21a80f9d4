"""Plans against the exact frontier of the small world, cases solved by hand, and draws by rejection."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from rarlhf.config.errors import UserError
from rarlhf.config.params import Params
from rarlhf.data.frontier import Outcomes, exact_frontier, world_outcomes
from rarlhf.risk.plan import (
    TRUSTED,
    Aim,
    Answers,
    Array,
    aim_of,
    caution,
    effective_samples,
    frontier,
    largest_kl,
    mean_kl,
    planned_weights,
    reference,
    solve,
    utility,
    weighted_cvar,
)

KINDS = np.repeat([0, 1, 2], [7, 7, 6])  # 20 prompts, as many of each kind as its share says: .35, .35, .3


@pytest.fixture(scope="module")
def world() -> Outcomes:
    return world_outcomes(True)


@pytest.fixture(scope="module")
def enumerated(world: Outcomes) -> Answers:
    """Every answer of the small world once, with its probability as importance weight: no error of sampling."""
    return Answers(world.values[KINDS], np.log(world.reference[KINDS]))


def drawn(world: Outcomes, prompts: int, samples: int, policy: Array | None = None, seed: int = 1) -> Answers:
    """Answers of a policy (K, S), the reference by default, to prompts of all kinds; weighted if it is another one."""
    rng = np.random.default_rng(seed)
    kinds = np.resize(KINDS, prompts)
    source = world.reference if policy is None else policy
    picks = np.stack([rng.choice(source.shape[1], samples, p=source[kind]) for kind in kinds])
    log_base = None if policy is None else np.log(world.reference / policy)[kinds[:, None], picks]
    return Answers(world.values[kinds[:, None], picks], log_base)


@pytest.mark.parametrize("kl", [0.25, 0.5, 1.0])
@pytest.mark.parametrize("alpha", [0.1, 0.3, 1.0])
def test_on_enumerated_answers_it_is_the_exact_frontier(
    world: Outcomes, enumerated: Answers, kl: float, alpha: float
) -> None:
    (row,), (exact,) = frontier(enumerated, alpha, [kl]), exact_frontier(world, [kl], alpha)
    assert row.best_mean.kl == pytest.approx(kl, abs=1e-6)
    assert row.best_cvar.kl == pytest.approx(kl, abs=1e-6)
    assert row.best_mean.mean == pytest.approx(exact.best_mean.mean, abs=1e-6)
    assert row.best_mean.cvar == pytest.approx(exact.best_mean.cvar, abs=1e-6)
    # The exact search tries the scores that occur alone, and gives a thousandth to the mean.
    assert row.best_cvar.cvar == pytest.approx(exact.best_cvar.cvar, abs=2e-3)


def test_samples_come_near_the_exact_frontier(world: Outcomes) -> None:
    (row,) = frontier(drawn(world, 200, 512), 0.3, [0.5])
    (exact,) = exact_frontier(world, [0.5], 0.3)
    for found, expected in ((row.best_mean, exact.best_mean), (row.best_cvar, exact.best_cvar)):
        assert found.mean == pytest.approx(expected.mean, abs=0.08)
        assert found.cvar == pytest.approx(expected.cvar, abs=0.08)


def test_answers_of_another_policy_give_the_same_plan(world: Outcomes) -> None:
    other = world.reference * np.exp(0.4 * world.values)
    other /= other.sum(axis=1, keepdims=True)
    own, weighted = drawn(world, 200, 512), drawn(world, 200, 512, other, seed=2)
    aim = Aim(1.0, 0.3)
    expected, plan = solve(own, aim, 0.5), solve(weighted, aim, 0.5)
    assert plan.mean == pytest.approx(expected.mean, abs=0.1)
    assert plan.cvar == pytest.approx(expected.cvar, abs=0.1)
    assert plan.eta == pytest.approx(expected.eta, abs=0.2)
    assert plan.kl_coef == pytest.approx(expected.kl_coef, rel=0.1)
    unweighted = solve(Answers(weighted.scores), aim, 0.5)  # what forgotten weights would give
    assert unweighted.cvar - expected.cvar > 0.3


def test_rejection_draws_from_the_planned_policy(world: Outcomes, enumerated: Answers) -> None:
    """Accepting y ~ pi_ref with probability exp(-(eta - s)+ / (alpha beta)) draws from the CVaR-optimal policy."""
    aim = Aim(1.0, 0.3)
    plan = solve(enumerated, aim, 0.5)
    assert plan.eta is not None
    rng, draws, starts = np.random.default_rng(5), 100_000, (0, 7, 14)  # a row of each kind
    weights = planned_weights(enumerated, plan.eta, plan.kl_coef, aim)
    kls = []
    for kind, row in enumerate(starts):
        picks = rng.choice(64, draws, p=world.reference[kind])
        shortfall = np.maximum(plan.eta - world.values[kind, picks], 0.0)
        log_accept = -shortfall / (aim.alpha * plan.kl_coef)
        taken = rng.random(draws) < np.exp(log_accept)
        shares = np.bincount(picks[taken], minlength=64) / taken.sum()
        errors = np.sqrt(weights[row] * (1 - weights[row]) / taken.sum())
        assert (np.abs(shares - weights[row]) < 4.5 * errors + 1e-4).all()
        kls.append(log_accept[taken].mean() - math.log(taken.mean()))
    assert world.shares @ np.array(kls) == pytest.approx(plan.kl, abs=0.02)


def test_a_coin_by_hand() -> None:
    """One prompt, 100 answers, half 0 and half 1: at weight .9 on the ones, KL = log 2 + .9 log .9 + .1 log .1."""
    answers = Answers(np.repeat([[0.0, 1.0]], 50, axis=0).T.reshape(1, 100))
    kl = math.log(2) + 0.9 * math.log(0.9) + 0.1 * math.log(0.1)
    plan = solve(answers, Aim(0.0, 0.2), kl)
    assert plan.mean == pytest.approx(0.9)
    assert plan.cvar == pytest.approx(0.5)  # of the worst .2, .1 are tails
    assert plan.kl_coef == pytest.approx(1 / math.log(9))  # exp(1 / beta) = .9 / .1
    assert plan.effective_samples == pytest.approx(1 / (0.9**2 / 50 + 0.1**2 / 50))
    assert (plan.eta, plan.prompt_tail) == (None, None)


def test_utility_by_hand() -> None:
    scores = np.array([-3.0, 0.0, 2.0])
    assert utility(scores, 1.0, Aim(1.0, 0.5)).tolist() == [-7.0, -1.0, 1.0]  # 1 - 4 / .5, 1 - 1 / .5, 1
    assert utility(scores, 1.0, Aim(0.5, 0.5)).tolist() == [-5.0, -0.5, 1.5]
    assert utility(scores, None, Aim(0.0, 0.5)).tolist() == scores.tolist()


def test_cvar_by_hand() -> None:
    answers = Answers(np.array([[-3.0, 2.0], [0.0, -1.0]]))
    weights = np.array([[0.5, 0.5], [0.75, 0.25]])  # of the mixture: -3 .25, -1 .125, 0 .375, 2 .25
    assert weighted_cvar(answers, weights, 0.5) == pytest.approx((-3 * 0.25 - 1 * 0.125) / 0.5)
    assert weighted_cvar(answers, weights, 1.0) == pytest.approx(-0.75 - 0.125 + 0.5)
    assert effective_samples(weights).tolist() == pytest.approx([2.0, 1.6])


def test_weights_sum_to_one_and_spend_the_kl(world: Outcomes) -> None:
    answers = drawn(world, 40, 32)
    for mix, alpha in itertools.product((0.0, 0.5, 1.0), (0.1, 0.4)):
        aim = Aim(mix, alpha)
        plan = solve(answers, aim, 0.7)
        weights = planned_weights(answers, plan.eta, plan.kl_coef, aim)
        assert weights.sum(axis=1) == pytest.approx(np.ones(40))
        assert mean_kl(answers, weights) == plan.kl == pytest.approx(0.7, abs=1e-6)
        assert 1 <= plan.effective_samples_low <= plan.effective_samples < 32


def test_eta_is_the_planned_policys_own_quantile(enumerated: Answers) -> None:
    noise = np.random.default_rng(3).normal(scale=0.3, size=enumerated.scores.shape)  # no two scores are equal
    answers, aim = Answers(enumerated.scores + noise, enumerated.log_base), Aim(1.0, 0.3)
    plan = solve(answers, aim, 0.5)
    assert plan.eta is not None
    weights = planned_weights(answers, plan.eta, plan.kl_coef, aim)
    assert weights[answers.scores < plan.eta].sum() / len(weights) == pytest.approx(0.3, abs=0.02)


def test_no_other_eta_is_better(world: Outcomes) -> None:
    answers, aim = drawn(world, 60, 32), Aim(0.7, 0.2)
    plan = solve(answers, aim, 0.6)
    assert plan.eta is not None
    best = 0.3 * plan.mean + 0.7 * plan.cvar
    for eta in plan.eta + np.linspace(-0.5, 0.5, 21):
        other = solve(answers, aim, 0.6, eta=float(eta))
        assert other.eta == eta
        assert 0.3 * other.mean + 0.7 * other.cvar <= best + 1e-3


def test_it_is_continuous_in_the_mix(world: Outcomes) -> None:
    answers = drawn(world, 60, 32)
    plans = [solve(answers, Aim(mix, 0.2), 0.6) for mix in (0.0, 1e-4, 0.1, 0.9999, 1.0)]
    for one, other in ((plans[0], plans[1]), (plans[3], plans[4])):
        assert (one.mean, one.cvar) == pytest.approx((other.mean, other.cvar), abs=5e-3)
    assert plans[0].mean > plans[2].mean > plans[4].mean
    assert plans[0].cvar < plans[2].cvar < plans[4].cvar


def test_at_alpha_one_the_aim_is_the_mean(world: Outcomes) -> None:
    answers = drawn(world, 40, 32)
    mean, plan = solve(answers, Aim(0.0, 1.0), 0.7), solve(answers, Aim(1.0, 1.0), 0.7)
    assert plan.eta == answers.scores.max()
    assert replace(plan, eta=None).kl_coef == pytest.approx(mean.kl_coef)
    assert plan.mean == pytest.approx(mean.mean)
    assert plan.cvar == pytest.approx(plan.mean)


def test_more_nats_reach_more(world: Outcomes) -> None:
    answers = drawn(world, 60, 64)
    tail = np.arange(60) % 20 >= 14  # the third kind
    start, rows = reference(answers, 0.2, tail), frontier(answers, 0.2, [0.25, 0.5, 1.0], tail)
    means = [start.mean, *(row.best_mean.mean for row in rows)]
    cvars = [start.cvar, *(row.best_cvar.cvar for row in rows)]
    assert means == sorted(means)
    assert cvars == sorted(cvars)
    assert start.kl == pytest.approx(0, abs=1e-12)
    assert start.mean == pytest.approx(answers.scores.mean())
    assert start.prompt_tail == pytest.approx(answers.scores[tail].mean())
    for row in rows:
        assert row.best_cvar.prompt_tail is not None and row.best_mean.prompt_tail is not None
        assert row.best_cvar.prompt_tail > row.best_mean.prompt_tail
        assert row.best_mean.cvar < row.best_cvar.cvar
        assert row.best_cvar.mean < row.best_mean.mean


def test_more_nats_than_the_answers_show_are_not_planned() -> None:
    answers = Answers(np.random.default_rng(1).normal(size=(50, 8)))
    assert largest_kl(answers) == pytest.approx(TRUSTED * math.log(8), rel=5e-3)  # at beta of 1e-4 of the range
    plan = solve(answers, Aim(1.0, 0.3), 3.0)
    assert plan.kl == pytest.approx(largest_kl(answers), abs=1e-6)
    assert plan.capped
    line = caution("cvar_rlhf", plan)
    assert line is not None
    assert line.startswith("cvar_rlhf: planned for 1.25 nats instead of kl.target = 3: ")
    fine = solve(answers, Aim(1.0, 0.3), 1.0)
    assert not fine.capped
    assert caution("cvar_rlhf", fine) is None


def test_uneven_importance_weights_lower_what_is_planned() -> None:
    rng = np.random.default_rng(1)
    scores = rng.normal(size=(50, 32))
    even, uneven = Answers(scores), Answers(scores, 2.0 * rng.normal(size=(50, 32)))
    assert largest_kl(uneven) < 0.6 * largest_kl(even)


def test_equal_answers_lower_what_is_planned() -> None:
    scores = np.tile([[0.0, 0.0, 1.0, 1.0]], (5, 1))  # the best policy takes either one: log 2 nats
    assert largest_kl(Answers(scores)) == pytest.approx(TRUSTED * math.log(2))


def test_a_constant_of_a_rows_base_weights_changes_nothing(world: Outcomes, enumerated: Answers) -> None:
    assert enumerated.log_base is not None
    shifted = Answers(enumerated.scores, enumerated.log_base + np.linspace(-900, 900, 20)[:, None])
    first, second = (solve(answers, Aim(1.0, 0.3), 0.5) for answers in (enumerated, shifted))
    assert first.kl_coef == pytest.approx(second.kl_coef, rel=1e-6)
    assert first.cvar == pytest.approx(second.cvar, abs=1e-6)


def test_the_aim_of_a_methods_risk(params: Params) -> None:
    risk = params.risk.model_copy(update={"alpha": 0.2, "mix": 0.7})
    expected = {"none": Aim(0.0, 0.2), "cvar_ru": Aim(1.0, 0.2), "mean_cvar": Aim(0.7, 0.2)}
    for measure, aim in expected.items():
        assert aim_of(risk.model_copy(update={"measure": measure})) == aim
    with pytest.raises(UserError, match="risk.measure = 'evar' has no plan; take none, cvar_ru, mean_cvar"):
        aim_of(risk.model_copy(update={"measure": "evar"}))


SCORES = np.array([[0.0, 1.0], [2.0, 0.5]])


def test_wrong_arguments_are_refused() -> None:
    answers = Answers(SCORES)
    for call, message in (
        (lambda: Aim(1.5, 0.3), r"mix must be in \[0, 1\], got 1.5"),
        (lambda: Aim(0.5, 0.0), r"alpha must be in \(0, 1\], got 0"),
        (lambda: Answers(SCORES[0]), r"N of 2 at least, got \(2,\)"),
        (lambda: Answers(SCORES[:, :1]), r"N of 2 at least, got \(2, 1\)"),
        (lambda: Answers(SCORES, SCORES[:1]), r"log_base must be \(2, 2\) as the scores, got \(1, 2\)"),
        (lambda: solve(answers, Aim(0.0, 0.3), 0.0), "kl_target must be above 0, got 0"),
        (lambda: planned_weights(answers, None, 0.0, Aim(0.0, 0.3)), "kl_coef must be above 0, got 0"),
        (lambda: utility(SCORES, None, Aim(1.0, 0.3)), "needs an eta"),
    ):
        with pytest.raises(ValueError, match=message):
            call()  # type: ignore[no-untyped-call]


def test_scores_that_leave_no_plan_are_told_in_one_line() -> None:
    with pytest.raises(UserError, match="all answers to each prompt have the same score, so there is nothing to plan"):
        solve(Answers(np.repeat([[1.0], [2.0]], 4, axis=1)), Aim(0.0, 0.3), 0.5)
    with pytest.raises(UserError, match="1 of 4 scores of the answers are not finite numbers; mend the scorer"):
        Answers(np.array([[0.0, math.nan], [1.0, 2.0]]))
    with pytest.raises(UserError, match="2 of 4 log-ratios"):
        Answers(SCORES, np.array([[0.0, math.inf], [-math.inf, 2.0]]))
    with pytest.raises(UserError, match=r"risk.eta = -5: .* cannot be 0.20 nats away"):
        solve(Answers(SCORES), Aim(1.0, 0.3), 0.2, eta=-5.0)


def test_an_eta_that_does_not_reach_the_kl_is_never_the_best() -> None:
    """A tenth of the answers stays at the lowest score, so CVaR 10 % is that score at every eta that reaches the KL."""
    answers = Answers(np.array([[0.0] * 6, [0.0, 0.0, 1.0, 1.0, 2.0, 2.0]]))
    planned = solve(answers, Aim(1.0, 0.1), 0.4)
    assert planned.cvar == 0
    assert planned.eta is not None and planned.eta > 0  # a score capped at its lowest value moves nothing
    assert planned.kl == pytest.approx(min(0.4, largest_kl(answers)))
