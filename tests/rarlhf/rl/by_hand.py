"""Six episodes by hand, and a trainer that keeps what it would train on."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rarlhf.models.episodes import Episodes
from rarlhf.rl.advantages import gae, token_rewards
from rarlhf.rl.ppo import PPOTrainer
from rarlhf.rl.rollout import Rollout, Targets, UpdateStats, select

QUERIES = [[5 + i] * (1 + i % 3) for i in range(14)]
STATS = UpdateStats(0.0, 0.0, 0.0, 0.0, 1.0, 0.0)
# Of the six episodes by hand; 9.0 is padding.
SCORES = [3.0, -1.0, 2.0, -5.0, 0.0, -1.0]
LOG_RATIOS = [[0.5, 1.0, 9.0], [2.0, 0.0, 9.0], [3.0, 9.0, 9.0], [4.0, 9.0, 9.0], [-1.0, 0.0, 0.0], [1.0, -1.0, 0.0]]
Make = Callable[..., PPOTrainer]


def weights(trainer: PPOTrainer) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in trainer.policy.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Bit for bit."""
    return all(torch.equal(one[name], other[name]) for name in one)


def targets_of(trainer: PPOTrainer, rollout: Rollout) -> Targets:
    """All of a rollout's episodes as targets."""
    mask = rollout.episodes.response_mask
    rewards = token_rewards(rollout.scores, rollout.log_ratio, mask, trainer.kl_coef)
    advantages, returns = gae(rewards, rollout.values, mask, 1.0, 0.95)
    return select(rollout, advantages, returns, torch.ones(len(mask), dtype=torch.bool))


def rollout_by_hand(scores: list[float], log_ratio: list[list[float]] | None = None) -> Rollout:
    """Six episodes of 2, 2, 1, 1, 3 and 3 tokens with given scores and log-ratios, critic 0."""
    lengths = torch.tensor([2, 2, 1, 1, 3, 3])
    mask = torch.arange(3) < lengths.unsqueeze(1)
    tokens = torch.arange(6 * 3).view(6, 3) + 40
    episodes = Episodes(torch.full((6, 2), 7), torch.ones(6, 2, dtype=torch.bool), tokens, mask)
    zeros = torch.zeros(6, 3)
    logprobs = zeros if log_ratio is None else torch.tensor(log_ratio)
    return Rollout(episodes, logprobs, zeros, zeros, zeros, torch.tensor(scores))


def capture(trainer: PPOTrainer, monkeypatch: pytest.MonkeyPatch) -> list[Targets]:
    """What the trainer would train on, instead of training on it."""
    caught: list[Targets] = []
    monkeypatch.setattr(trainer, "update", lambda targets, iteration: caught.append(targets) or STATS)
    return caught


def fitted(trainer: PPOTrainer, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The value targets that the value head alone would be fitted to, instead of fitting it."""
    caught: list[Tensor] = []
    monkeypatch.setattr(trainer, "fit_value_head", lambda rollout, returns: caught.append(returns))
    return caught
