"""The two objectives, risk of the return and risk of the score, on problems small enough for their exact optima."""

import pytest
import torch
from torch import Tensor

from rarlhf.data.frontier import Point, evaluate_policy, exact_frontier, world_outcomes
from rarlhf.risk.measures.cvar_ru import tail_utility

WORLD = world_outcomes(wanted_only=True)
SHARES = torch.tensor(WORLD.shares).unsqueeze(1)
REFERENCE, VALUES = torch.tensor(WORLD.reference), torch.tensor(WORLD.values)
BETA = 0.6


def quantile(values: Tensor, p: Tensor, alpha: float) -> float:
    """The lower alpha-quantile of `values` with probabilities `p`, of one shape."""
    ordered, order = values.flatten().sort()
    return float(ordered[int((p.flatten()[order].cumsum(dim=0) < alpha - 1e-12).sum())])


def tail(values: Tensor, p: Tensor, alpha: float) -> float:
    """CVaR of `values` with probabilities `p`, of one shape."""
    eta = quantile(values, p, alpha)
    return float(eta - (p * (eta - values).clamp(min=0.0)).sum() / alpha)


def ascend(alpha: float, of: str, planned: float | None = None, steps: int = 900) -> Tensor:
    """(K, S) policy that the gradient of the measure's utilities leads to, from the uniform one.

    Eta is `planned`, or the quantile of the policy so far. The step falls to zero, since CVaR has a kink wherever an
    answer passes the quantile.
    """
    logits = torch.zeros_like(VALUES).requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.15)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (1 - step / steps) ** 2)
    for _ in range(steps):
        logp = logits.log_softmax(dim=1)
        p, log_ratio = logp.detach().exp(), logp.detach() - REFERENCE.log()
        values = VALUES if of == "score" else VALUES - BETA * log_ratio
        eta = quantile(values, SHARES * p, alpha) if planned is None else planned
        utility = tail_utility(values, eta, alpha, 0.0 if of == "score" else BETA)
        paid = utility - BETA * log_ratio if of == "score" else utility
        baseline = (p * paid).sum(dim=1, keepdim=True)
        optimizer.zero_grad()
        (-(SHARES * p * (paid - baseline) * logp).sum()).backward()
        optimizer.step()
        schedule.step()
    return logits.detach().softmax(dim=1)


def gibbs(utility: Tensor) -> tuple[Tensor, float]:
    """(K, S) the policy that maximises E[u] - beta KL, and the value of that maximum, beta E[log Z]."""
    log_weights = REFERENCE.log() + utility / BETA
    return log_weights.softmax(dim=1), float(BETA * (SHARES.squeeze(1) * log_weights.logsumexp(dim=1)).sum())


def optimum(alpha: float) -> tuple[Tensor, float]:
    """(K, S) the policy that maximises CVaR(score) - beta KL, the best of the policies of each eta; and its eta."""
    etas = VALUES.unique().tolist()
    _, eta = max((gibbs(tail_utility(VALUES, eta, alpha, 0.0))[1], eta) for eta in etas)
    return gibbs(tail_utility(VALUES, eta, alpha, 0.0))[0], eta


def objective(policy: Tensor, alpha: float) -> float:
    """CVaR(score) - beta KL."""
    found = point(policy, alpha)
    return found.cvar - BETA * found.kl


def point(policy: Tensor, alpha: float) -> Point:
    return evaluate_policy(WORLD, policy.numpy(), alpha)


@pytest.mark.parametrize("alpha", [0.1, 0.3, 1.0])
def test_ascent_of_the_risk_of_the_score_ends_at_its_optimum(alpha: float) -> None:
    policy, eta = optimum(alpha)
    found, best = point(ascend(alpha, "score", eta), alpha), point(policy, alpha)
    for one, other in ((found.kl, best.kl), (found.mean, best.mean), (found.cvar, best.cvar)):
        assert one == pytest.approx(other, rel=0.01)


def test_the_policys_own_quantile_leads_to_a_local_optimum() -> None:
    """CVaR is a maximum of functions linear in the policy: an eta that follows the policy can stay low."""
    own, (planned, _) = ascend(0.3, "score"), optimum(0.3)
    assert objective(own, 0.3) < objective(planned, 0.3) - 0.01
    again, _ = gibbs(tail_utility(VALUES, quantile(VALUES, SHARES * own, 0.3), 0.3, 0.0))
    torch.testing.assert_close(point(again, 0.3).kl, point(own, 0.3).kl, rtol=0.02, atol=0)  # nothing better nearby


@pytest.mark.parametrize("alpha", [0.1, 0.3])
def test_the_optimum_of_the_risk_of_the_score_is_on_the_frontier(alpha: float) -> None:
    best = point(optimum(alpha)[0], alpha)
    (row,) = exact_frontier(WORLD, [best.kl], alpha)
    assert best.cvar == pytest.approx(row.best_cvar.cvar, rel=0.01)
    assert best.cvar > row.best_mean.cvar + 0.1  # plain RLHF at the same KL: the penalty outside is risk-averse


@pytest.mark.parametrize("alpha", [0.1, 0.3, 1.0])
def test_with_the_penalty_inside_plain_rlhf_is_already_the_optimum(alpha: float) -> None:
    """Its return is beta log Z(x) for every answer, and no policy has a better tail of returns."""
    plain, _ = gibbs(VALUES)
    returns = VALUES - BETA * (plain / REFERENCE).log()
    torch.testing.assert_close(returns, returns[:, :1].expand_as(returns))
    best = tail(returns, SHARES * plain, alpha)
    draws = torch.Generator().manual_seed(1)
    for scale in (0.01, 0.1, 1.0, 5.0):
        other = (plain.log() + scale * torch.randn(plain.shape, generator=draws, dtype=plain.dtype)).softmax(dim=1)
        assert tail(VALUES - BETA * (other / REFERENCE).log(), SHARES * other, alpha) <= best + 1e-9
    found = ascend(alpha, "return")
    value = tail(VALUES - BETA * (found / REFERENCE).log(), SHARES * found, alpha)
    assert value <= best + 1e-9
    assert value == pytest.approx(best, abs=0.01)
    spent, of_plain = point(found, alpha).kl, point(plain, alpha).kl
    assert (spent == pytest.approx(of_plain, rel=0.02)) == (alpha == 1)  # below alpha 1 the KL is not determined
