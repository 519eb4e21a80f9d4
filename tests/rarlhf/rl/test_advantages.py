"""Token rewards, GAE and whitening against hand numbers and a naive twin."""

import pytest
import torch
from torch import Tensor

from rarlhf.risk.measures.base import Treatment
from rarlhf.rl.advantages import gae, query_advantages, risk_rewards, token_rewards, whiten

MASK = torch.tensor([[True, True, True], [True, False, False]])


def test_token_rewards_by_hand() -> None:
    log_ratio = torch.tensor([[0.5, -1.0, 2.0], [1.0, 9.0, 9.0]])  # the nines are padding
    rewards = token_rewards(torch.tensor([3.0, -2.0]), log_ratio, MASK, kl_coef=0.1)
    # row 1: -.05, .1, -.2 + 3; row 2: -.1 - 2, then padding
    torch.testing.assert_close(rewards, torch.tensor([[-0.05, 0.1, 2.8], [-2.1, 0.0, 0.0]]))


def test_kl_coef_zero_leaves_the_scores_alone() -> None:
    scores = torch.tensor([3.0, -2.0])
    rewards = token_rewards(scores, torch.randn(2, 3), MASK, kl_coef=0.0)
    assert torch.equal(rewards.sum(dim=1), scores)


def test_gae_by_hand() -> None:
    rewards = torch.tensor([[0.0, 0.0, 1.0]])
    values = torch.tensor([[0.5, 0.25, 0.5]])
    # gamma 1, lambda .5. t=3: 1 - .5 = .5; t=2: (.5 - .25) + .5 * .5 = .5; t=1: (.25 - .5) + .5 * .5 = 0
    advantages, returns = gae(rewards, values, torch.ones(1, 3, dtype=torch.bool), 1.0, 0.5)
    torch.testing.assert_close(advantages, torch.tensor([[0.0, 0.5, 0.5]]))
    torch.testing.assert_close(returns, torch.tensor([[0.5, 0.75, 1.0]]))


def test_gae_at_lambda_one_is_return_minus_value() -> None:
    g = torch.Generator().manual_seed(3)
    rewards, values = torch.randn(2, 5, generator=g), torch.randn(2, 5, generator=g)
    advantages, returns = gae(rewards, values, torch.ones(2, 5, dtype=torch.bool), 0.9, 1.0)
    discounted = torch.stack([sum(0.9**k * rewards[:, t + k] for k in range(5 - t)) for t in range(5)], dim=1)
    torch.testing.assert_close(returns, discounted)
    torch.testing.assert_close(advantages, discounted - values)


def naive_gae(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    """Sum over l of (gamma lambda)^l delta_{t+l}, written out, for one episode without padding."""
    following = [*values[1:], 0.0]
    deltas = [r + gamma * nxt - v for r, nxt, v in zip(rewards, following, values, strict=True)]
    return [sum((gamma * lam) ** k * deltas[t + k] for k in range(len(deltas) - t)) for t in range(len(deltas))]


def test_gae_agrees_with_its_naive_twin_whatever_the_padding() -> None:
    g = torch.Generator().manual_seed(4)
    lengths = (7, 3, 5)
    rewards, values = torch.randn(3, 7, generator=g), torch.randn(3, 7, generator=g)
    mask = torch.arange(7) < torch.tensor(lengths).unsqueeze(1)
    advantages, returns = gae(rewards * mask, values, mask, 0.98, 0.9)
    for row, length in enumerate(lengths):
        expected = naive_gae(rewards[row, :length].tolist(), values[row, :length].tolist(), 0.98, 0.9)
        torch.testing.assert_close(advantages[row, :length], torch.tensor(expected), atol=1e-6, rtol=1e-5)
        assert not advantages[row, length:].any()
        assert not returns[row, length:].any()


def test_whiten_by_hand() -> None:
    whitened = whiten(torch.tensor([[1.0, 3.0, 99.0]]), torch.tensor([[True, True, False]]))
    # mean 2, unbiased variance 2, so -1 / sqrt 2 and 1 / sqrt 2
    torch.testing.assert_close(whitened, torch.tensor([[-(0.5**0.5), 0.5**0.5, 0.0]]))
    scaled = whiten(torch.tensor([[1.0, 3.0, 99.0]]), torch.tensor([[True, True, False]]), centred=False)
    torch.testing.assert_close(scaled, torch.tensor([[0.5**0.5, 3 * 0.5**0.5, 0.0]]))


def test_equal_advantages_are_whitened_to_nothing() -> None:
    assert whiten(torch.full((2, 3), 5.0), MASK).tolist() == [[0.0] * 3] * 2  # and not 0 / 0


def test_whitening_over_kept_episodes_differs_from_whitening_over_all() -> None:
    advantages = torch.tensor([[-3.0, -1.0], [4.0, 6.0]])
    kept = torch.tensor([[True, True], [False, False]])
    both = whiten(advantages, torch.ones_like(kept))

    def centred(x: Tensor) -> bool:
        return bool(x[0].mean().abs() < 1e-6)

    assert centred(whiten(advantages, kept))  # the better of two bad episodes is reinforced
    assert not centred(both)


def test_a_utility_is_placed_at_the_last_real_token_beside_a_share_of_the_rewards() -> None:
    mask = torch.tensor([[True, True, False], [True, False, False]])
    rewards, kept = torch.tensor([[-1.0, 3.0, 0.0], [2.0, 0.0, 0.0]]), torch.tensor([True, True])
    utility = torch.tensor([5.0, -4.0])
    assert risk_rewards(rewards, Treatment(kept), mask) is rewards
    alone = risk_rewards(rewards, Treatment(kept, utility, own_share=0.0), mask)
    assert alone.tolist() == [[0.0, 5.0, 0.0], [-4.0, 0.0, 0.0]]
    both = risk_rewards(rewards, Treatment(kept, utility, own_share=0.5), mask)
    assert both.tolist() == [[-0.5, 1.5 + 5.0, 0.0], [1.0 - 4.0, 0.0, 0.0]]


def test_advantages_over_the_querys_other_responses_by_hand() -> None:
    """Two queries with two responses each, of unlike lengths."""
    rewards = torch.tensor([[-1.0, -2.0, 5.0], [-1.0, 4.0, 0.0], [3.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    mask = torch.tensor([[True, True, True], [True, True, False], [True, False, False], [True, True, True]])
    # To go: (2, 3, 5), (3, 4) and from then on 4; (3) and from then on 3, (3, 2, 1).
    advantages, to_go = query_advantages(rewards, mask, 1.0, 2)
    assert torch.equal(to_go, torch.tensor([[2.0, 3, 5], [3, 4, 0], [3, 0, 0], [3, 2, 1]]))
    assert torch.equal(advantages, torch.tensor([[-1.0, -1, 1], [1, 1, 0], [0, 0, 0], [0, -1, -2]]))


def test_advantages_over_other_responses_are_rloo_without_a_penalty() -> None:
    g = torch.Generator().manual_seed(5)
    scores, lengths = torch.randn(12, generator=g), torch.randint(1, 6, (12, 1), generator=g)
    mask = torch.arange(5) < lengths
    rewards = token_rewards(scores, torch.zeros(12, 5), mask, kl_coef=0.3)
    advantages, _ = query_advantages(rewards, mask, 1.0, 4)
    groups = scores.view(3, 4)
    expected = (4 / 3 * (groups - groups.mean(dim=1, keepdim=True))).view(12, 1)
    torch.testing.assert_close(advantages, torch.where(mask, expected, 0.0))


def test_a_querys_baseline_does_not_depend_on_the_own_response() -> None:
    """So it does not bias the gradient. Negative control: the others' baseline does."""
    g = torch.Generator().manual_seed(6)
    mask = torch.arange(5) < torch.tensor([[5], [2], [3]])
    rewards = torch.where(mask, torch.randn(3, 5, generator=g), 0.0)
    edited = rewards.clone()
    edited[1, :2] += torch.tensor([2.0, -7.0])
    (one, one_to_go), (other, other_to_go) = (query_advantages(r, mask, 0.9, 3) for r in (rewards, edited))
    torch.testing.assert_close((one_to_go - one)[1, :2], (other_to_go - other)[1, :2])
    assert not torch.allclose((one_to_go - one)[0], (other_to_go - other)[0])


def test_among_kept_episodes_the_others_are_those_that_are_kept() -> None:
    """Two queries with three responses each; of the second query one response alone is kept."""
    scores = torch.tensor([[1.0], [4.0], [9.0], [2.0], [70.0], [80.0]])
    kept, mask = torch.tensor([True, True, False, True, False, False]), torch.ones(6, 1, dtype=torch.bool)
    advantages, _ = query_advantages(scores, mask, 1.0, 3, kept)
    assert advantages[kept, 0].tolist() == [1.0 - 4.0, 4.0 - 1.0, 2.0 - (1.0 + 4.0) / 2]
    everything, _ = query_advantages(scores, mask, 1.0, 3, torch.ones(6, dtype=torch.bool))
    assert torch.equal(everything, query_advantages(scores, mask, 1.0, 3)[0])


def test_the_only_kept_episode_has_no_baseline() -> None:
    scores, kept = torch.tensor([[3.0], [1.0]]), torch.tensor([False, True])
    advantages, _ = query_advantages(scores, torch.ones(2, 1, dtype=torch.bool), 1.0, 2, kept)
    assert advantages[1].tolist() == [1.0]


def test_one_response_is_no_baseline() -> None:
    with pytest.raises(ValueError, match="1 response: a baseline needs others"):
        query_advantages(torch.zeros(2, 3), MASK, 1.0, 1)
