"""The gradients of measures' utilities against finite differences of the measures' own definitions."""

from math import log

import pytest
import torch
from torch import Tensor

from rarlhf.config.params import Params
from rarlhf.risk.measures import MEASURES
from rarlhf.risk.measures.cvar_ru import tail_utility
from tests.rarlhf.risk.batches import BETA, ONE, Scheduled, batch, measure

P = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
PAYOFFS = torch.tensor([1.0, -2.0, 0.3, -0.5], dtype=torch.float64)
NOISE = torch.linspace(-1.5, 1.5, 401, dtype=torch.float64)  # of every arm; fine, so that no single outcome matters


def returns_of(logits: Tensor) -> Tensor:
    """(4, 401) returns of four arms under softmax(logits), with the KL penalty to the uniform reference."""
    return (PAYOFFS - BETA * (logits.log_softmax(dim=0) + log(4))).unsqueeze(1) + NOISE


def scores_of_arms() -> Tensor:
    """(4, 401) scores of the four arms, which no policy changes."""
    return PAYOFFS.unsqueeze(1) + NOISE


def exact(name: str, logits: Tensor, values: Tensor | None = None) -> float:
    """The measure of the mixture's returns, or of other `values` (4, 401) of its arms, by its definition."""
    returns = (returns_of(logits) if values is None else values).flatten()
    p = (logits.softmax(dim=0) / len(NOISE)).repeat_interleave(len(NOISE))
    mean = float((p * returns).sum())
    ordered, order = returns.sort()
    eta = ordered[int((p[order].cumsum(dim=0) < 0.5).sum())]
    tail = float(eta - (p * (eta - returns).clamp(min=0)).sum() / 0.5)
    if name == "entropic":
        return float(-2.0 * (p * (-returns / 2.0).exp()).sum().log())
    if name == "evar":
        grid = torch.linspace(0.5, 3.0, 2501, dtype=torch.float64)
        values = -grid * (p * (-returns / grid.unsqueeze(1)).exp()).sum(dim=1).log() + grid * log(0.5)
        return float(values.max())
    plain = {"none": mean, "cvar_ru": tail, "mean_cvar": 0.5 * mean + 0.5 * tail}
    assert name in plain, f"add the definition of {name} to exact()"
    return plain[name]


def policy_gradient(utility: Tensor) -> Tensor:
    """(4,) expectation of u d log p / d logits, for utilities (4, 401)."""
    by_arm = utility.mean(dim=1)
    return P * (by_arm - (P * by_arm).sum())


def cosine(one: Tensor, other: Tensor) -> float:
    return float(torch.cosine_similarity(one, other, dim=0))


def utilities_of(one: Scheduled, values: Tensor | None = None) -> Tensor:
    """(4, 401) utilities of the outcomes, returns or `values`, from a batch that holds each as often as P says."""
    copies = (P * 10).round().long()
    repeated = (returns_of(P.log()) if values is None else values).repeat_interleave(copies, dim=0)
    given = batch(repeated.flatten())._replace(kl_coef=BETA if values is None else 0.0)
    treated = one.treat(given, ONE).rewards.view(10, len(NOISE))
    return treated[copies.cumsum(dim=0) - 1]


@pytest.mark.parametrize("name", [name for name in MEASURES if name != "cvar"])
def test_utilities_give_the_true_gradient(name: str, params: Params) -> None:
    """Finite differences of the measure itself know nothing of utilities."""
    steps = 1e-3 * torch.eye(4, dtype=torch.float64)
    differences = [exact(name, P.log() + step) - exact(name, P.log() - step) for step in steps]
    true = torch.tensor(differences, dtype=torch.float64) / 2e-3
    gradient = policy_gradient(utilities_of(measure(params, measure=name)))
    assert cosine(gradient, true) > 0.9999
    assert float(gradient.norm() / true.norm()) == pytest.approx(1.0, rel=0.01)


@pytest.mark.parametrize("name", [name for name in MEASURES if name != "cvar"])
def test_with_the_penalty_outside_every_outcome_pays_its_own_log_ratio(name: str, params: Params) -> None:
    """Gradient of risk(score) - beta KL: that of the utility less beta times the log-ratio, and no further term."""
    scores = scores_of_arms()

    def objective(logits: Tensor) -> float:
        kl = float((logits.softmax(dim=0) * (logits.log_softmax(dim=0) + log(4))).sum())
        return exact(name, logits, scores) - BETA * kl

    steps = 1e-3 * torch.eye(4, dtype=torch.float64)
    differences = [objective(P.log() + step) - objective(P.log() - step) for step in steps]
    true = torch.tensor(differences, dtype=torch.float64) / 2e-3
    paid = utilities_of(measure(params, measure=name), scores) - BETA * (P.log() + log(4)).unsqueeze(1)
    assert cosine(policy_gradient(paid), true) > 0.9999
    assert float(policy_gradient(paid).norm() / true.norm()) == pytest.approx(1.0, rel=0.01)
    free = policy_gradient(utilities_of(measure(params, measure=name), scores))
    assert float((free - true).norm() / true.norm()) > 0.03  # negative control: without the penalty


def test_without_the_kl_term_the_gradient_of_the_tail_is_off(params: Params) -> None:
    """Negative control: returns hold log pi."""
    ru = measure(params, measure="cvar_ru")
    returns = returns_of(P.log())
    repeated = returns.repeat_interleave((P * 10).round().long(), dim=0).flatten()
    eta = float(repeated.sort().values[len(repeated) // 2 - 1])
    right, wrong = (policy_gradient(tail_utility(returns, eta, 0.5, beta)) for beta in (BETA, 0.0))
    torch.testing.assert_close(policy_gradient(utilities_of(ru)), right)
    assert float((wrong - right).norm() / right.norm()) > 0.05
