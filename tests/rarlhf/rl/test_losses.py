"""The clipped losses against hand numbers, identities and a naive twin."""

import math

import torch

from rarlhf.rl.losses import masked_mean, policy_loss, value_loss


def test_policy_loss_by_hand() -> None:
    ratio = torch.tensor([[1.5, 1.5, 0.5, 0.5]])
    advantages = torch.tensor([[1.0, -1.0, 1.0, -1.0]])
    # up and good: clipped at 1.2; up and bad: not clipped; down and good: not clipped; down and bad: clipped at .8
    torch.testing.assert_close(policy_loss(ratio, advantages, 0.2), torch.tensor([[-1.2, 1.5, -0.5, 0.8]]))


def test_policy_loss_at_ratio_one_is_minus_the_advantage() -> None:
    advantages = torch.randn(2, 3)
    assert torch.equal(policy_loss(torch.ones(2, 3), advantages, 0.2), -advantages)


def test_value_loss_by_hand() -> None:
    new, old, returns = torch.tensor([[2.0, 0.1]]), torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 1.0]])
    # 1: plain (2 - 1)^2 = 1, clipped (.2 - 1)^2 = .64, the larger is 1; 2: both (.1 - 1)^2 = .81
    torch.testing.assert_close(value_loss(new, old, returns, 0.2), torch.tensor([[0.5, 0.405]]))
    # a step past the clip towards the target counts as if it stopped there: (.2 - 1)^2 = .64, not (.9 - 1)^2 = .01
    torch.testing.assert_close(
        value_loss(torch.tensor(0.9), torch.tensor(0.0), torch.tensor(1.0), 0.2), torch.tensor(0.32)
    )


def test_value_loss_without_clip_is_half_the_square() -> None:
    torch.testing.assert_close(
        value_loss(torch.tensor(3.0), torch.tensor(0.0), torch.tensor(1.0), None), torch.tensor(2.0)
    )


def test_losses_agree_with_naive_twins() -> None:
    g = torch.Generator().manual_seed(5)
    log_ratio, advantages, new, old, returns = (torch.randn(3, 5, generator=g) for _ in range(5))
    policy, value = policy_loss(log_ratio.exp(), advantages, 0.2), value_loss(new, old, returns, 0.3)
    for i in range(3):
        for t in range(5):
            r, a = math.exp(log_ratio[i, t]), float(advantages[i, t])
            surrogate = min(r * a, min(max(r, 0.8), 1.2) * a)
            assert math.isclose(policy[i, t], -surrogate, rel_tol=1e-5)
            v, w, goal = float(new[i, t]), float(old[i, t]), float(returns[i, t])
            clipped = w + min(max(v - w, -0.3), 0.3)
            assert math.isclose(value[i, t], 0.5 * max((v - goal) ** 2, (clipped - goal) ** 2), rel_tol=1e-4)


def test_masked_mean_leaves_padding_out() -> None:
    x = torch.tensor([[1.0, 2.0], [6.0, float("nan")]])
    assert masked_mean(x, torch.tensor([[True, True], [True, False]])) == 3.0
