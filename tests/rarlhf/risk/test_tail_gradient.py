"""Which way hard selection points, in expectation, against the true gradient of CVaR: contexts, arms, noisy payoffs."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

LEVEL = 0.2
PROBLEMS = 100
CONTEXTS, ARMS = 5, 4


class Problem:
    """A random contextual bandit with a softmax policy; outcomes (X, A, K) with their probabilities."""

    def __init__(self, seed: int) -> None:
        draws = torch.Generator().manual_seed(seed)

        def simplex(*shape: int) -> Tensor:
            return torch.softmax(torch.randn(*shape, generator=draws, dtype=torch.float64), dim=-1)

        noise = torch.linspace(-3, 3, 41, dtype=torch.float64)
        contexts, self.policy = simplex(CONTEXTS), simplex(CONTEXTS, ARMS)
        means = torch.randn(CONTEXTS, ARMS, generator=draws, dtype=torch.float64)
        means = means + torch.randn(CONTEXTS, 1, generator=draws, dtype=torch.float64)
        spreads = 0.2 + 1.3 * torch.rand(CONTEXTS, ARMS, generator=draws, dtype=torch.float64)
        self.returns = means.unsqueeze(-1) + spreads.unsqueeze(-1) * noise
        density = torch.softmax(-(noise**2) / 2, dim=0)
        self.p = contexts[:, None, None] * self.policy.unsqueeze(-1) * density
        ordered, order = self.returns.flatten().sort()
        self.eta = ordered[int((self.p.flatten()[order].cumsum(dim=0) < LEVEL).sum())]
        self.tail = (self.returns <= self.eta).double()

    def gradient(self, advantages: Tensor) -> Tensor:
        """Expected policy gradient with respect to the logits, of advantages (X, A, K)."""
        by_arm = (self.p * advantages).sum(dim=-1)
        return (by_arm - self.policy * by_arm.sum(dim=1, keepdim=True)).flatten()

    def estimates(self) -> dict[str, Tensor]:
        kept = self.p * self.tail
        centre = (kept * self.returns).sum() / kept.sum()
        kept_critic = (kept * self.returns).sum(dim=(1, 2)) / kept.sum(dim=(1, 2)).clamp(min=1e-12)
        critic = (self.p * self.returns).sum(dim=(1, 2)) / self.p.sum(dim=(1, 2))
        above = self.returns - critic[:, None, None]
        centred = above - (kept * above).sum() / kept.sum()
        return {
            "true": self.gradient(self.tail * (self.returns - self.eta)),
            "kept mean": self.gradient(self.tail * (self.returns - centre)),
            "kept critic": self.gradient(self.tail * (self.returns - kept_critic[:, None, None])),
            "full critic": self.gradient(self.tail * above),
            "full critic, centred": self.gradient(self.tail * centred),
        }


def cosines() -> Iterator[dict[str, float]]:
    for seed in range(PROBLEMS):
        estimates = Problem(seed).estimates()
        true = estimates.pop("true")
        yield {name: float(torch.cosine_similarity(true, g, dim=0)) for name, g in estimates.items()}


@pytest.fixture(scope="module")
def mean_cosine() -> dict[str, float]:
    rows = list(cosines())
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}


def test_the_true_gradient_is_that_of_the_cvar() -> None:
    """Finite differences in the logits, so that `true` above deserves its name."""
    problem = Problem(0)
    logits = problem.policy.log()
    density = problem.p / problem.policy.unsqueeze(-1)

    def value(shifted: Tensor) -> Tensor:
        p = (density * torch.softmax(shifted, dim=1).unsqueeze(-1)).flatten()
        ordered, order = problem.returns.flatten().sort()
        eta = ordered[int((p[order].cumsum(dim=0) < LEVEL).sum())]
        return eta - (p * (eta - problem.returns.flatten()).clamp(min=0)).sum() / LEVEL

    steps = 1e-5 * torch.eye(CONTEXTS * ARMS, dtype=torch.float64).view(-1, CONTEXTS, ARMS)
    differences = torch.stack([(value(logits + step) - value(logits - step)) / 2e-5 for step in steps])
    torch.testing.assert_close(problem.estimates()["true"] / LEVEL, differences, atol=1e-4, rtol=1e-3)


def test_a_critic_of_all_episodes_points_along_the_true_gradient(mean_cosine: dict[str, float]) -> None:
    assert mean_cosine["full critic"] > 0.9


def test_centring_over_the_kept_turns_it_away(mean_cosine: dict[str, float]) -> None:
    for name in ("kept mean", "kept critic", "full critic, centred"):
        assert mean_cosine[name] < mean_cosine["full critic"] - 0.1


def test_the_counterexample_of_the_docs() -> None:
    """Two arms, half and half, alpha .18: B is nowhere worse, and hard selection moves towards A."""
    payoffs = torch.tensor([-10.0, 0.0, 5.0])
    arms = torch.tensor([[0.02, 0.18, 0.80], [0.02, 0.10, 0.88]])
    kept = torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]) * arms / 2  # mass of each outcome, before the cut
    kept[:, 2] = (0.18 - kept[:, :2].sum()) * kept[:, 2] / kept[:, 2].sum()  # the fives fill up what is left of .18

    def towards_b(baseline: float) -> float:
        by_arm = (kept * (payoffs - baseline)).sum(dim=1) / 0.18
        return float((by_arm[1] - by_arm[0]) / 2)

    centre = float((kept * payoffs).sum() / 0.18)
    assert centre == pytest.approx(-0.556, abs=1e-3)
    assert towards_b(5.0) == pytest.approx(0.556, abs=1e-3)  # the quantile as baseline
    assert towards_b(centre) == pytest.approx(-0.047, abs=2e-3)
