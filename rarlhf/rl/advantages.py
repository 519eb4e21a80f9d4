"""From scores and log-ratios to advantages: token rewards, generalised advantage estimation, whitening.

Letters: B episodes, T response tokens. A response mask is True on real tokens; everything is zero on padding.
"""

import torch
from torch import Tensor

from rarlhf.risk.measures.base import Treatment


def token_rewards(scores: Tensor, log_ratio: Tensor, response_mask: Tensor, kl_coef: float) -> Tensor:
    """Per-token reward: minus the KL penalty, plus the score at the last real token.

    Args:
        scores: (B,) float, the reward model's value of query and response.
        log_ratio: (B, T) float, log pi(a_t) - log pi_ref(a_t) in nats.
        response_mask: (B, T) bool, at least one True a row, all before the padding.
        kl_coef: beta, score units per nat.
    Returns: (B, T) float, zero on padding; its row sum is the episode return with the KL penalty in it.
    Source: paper, Eq. 5; design of Ziegler et al. 2019 (arXiv 1909.08593).
    """
    kl_penalty = torch.where(response_mask, kl_coef * log_ratio, torch.zeros_like(log_ratio))
    return terminal_rewards(scores.to(log_ratio.dtype), response_mask) - kl_penalty


def terminal_rewards(scores: Tensor, response_mask: Tensor) -> Tensor:
    """(B, T) float: `scores` (B,) at each row's last real token of `response_mask` (B, T), zero elsewhere."""
    last = response_mask.sum(dim=1, keepdim=True) - 1
    return torch.zeros_like(response_mask, dtype=scores.dtype).scatter(1, last, scores.unsqueeze(1))


def risk_rewards(rewards: Tensor, treated: Treatment, response_mask: Tensor) -> Tensor:
    """Per-token rewards after the risk measure: its utility at the last real token, plus a share of the own rewards.

    The measure saw returns with the KL penalty in them, so the penalty stays with the same weight as the score.

    Args:
        rewards: (B, T) float, as `token_rewards` gives them.
        treated: the measure's utilities (B,), and the weight with which `rewards` stay.
        response_mask: (B, T) bool.
    Returns: (B, T) float, zero on padding; `rewards` themselves if there is no utility.
    """
    if treated.utility is None:
        return rewards
    placed = terminal_rewards(treated.utility, response_mask)
    return placed if treated.own_share == 0 else treated.own_share * rewards + placed


def utility_of_score(scores: Tensor, treated: Treatment) -> Tensor:
    """(B,) what is paid at the last token in place of `scores` (B,) if a measure of the score is at work.

    The KL penalty of each token stays beside it, as it is, for every episode.
    """
    return scores if treated.utility is None else treated.own_share * scores + treated.utility


def penalty_to_go(log_ratio: Tensor, response_mask: Tensor, kl_coef: float, gamma: float) -> Tensor:
    """(B, T) float: discounted sum of -beta log_ratio (B, T) from each real token on, zero on padding."""
    nothing = torch.zeros_like(log_ratio)
    penalties = token_rewards(nothing[:, 0], log_ratio, response_mask, kl_coef)
    return gae(penalties, nothing, response_mask, gamma, gae_lambda=1.0)[0]


def gae(
    rewards: Tensor, values: Tensor, response_mask: Tensor, gamma: float, gae_lambda: float
) -> tuple[Tensor, Tensor]:
    """Advantages and value targets of episodes that all end at their last real token.

    End of text and the length limit are both terminal: the value after the last token is 0, never bootstrapped.

    Args:
        rewards: (B, T) float, zero on padding.
        values: (B, T) float, critic before each token.
        response_mask: (B, T) bool.
        gamma: discount in (0, 1].
        gae_lambda: lambda in [0, 1].
    Returns: advantages and returns (advantages + values), both (B, T), zero on padding.
    Source: Schulman et al. 2016 (arXiv 1506.02438), Eq. 16.
    """
    values = torch.where(response_mask, values, torch.zeros_like(values))
    advantages = torch.zeros_like(values)
    following = torch.zeros_like(values[:, 0])
    next_value = torch.zeros_like(values[:, 0])
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        following = torch.where(response_mask[:, t], delta + gamma * gae_lambda * following, torch.zeros_like(delta))
        advantages[:, t] = following
        next_value = values[:, t]
    return advantages, advantages + values


def query_advantages(
    rewards: Tensor, response_mask: Tensor, gamma: float, responses: int, kept: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Advantages whose baseline is what the query's other responses got, and the rewards to go; no critic.

    A token's advantage is the discounted sum of the rewards from it on, minus the mean of the same sum of the other
    responses at the same position; a response that has ended stays at its last token's. So the penalty that earlier
    tokens have paid adds no noise. Without a KL penalty and with gamma 1 it is RLOO: return minus the others' mean, for
    every token. Where all episodes are kept, the baseline depends on nothing that its own response did, so it does not
    bias the gradient.

    Where a measure keeps some episodes alone, the others are those that are kept too, as the critic of the kept is of
    them: nearly all that are kept are below the mean of all. One that is the only kept response to its query is
    measured from the other kept episodes of the batch.

    Args:
        rewards: (B, T) float, zero on padding; the responses to a query are `responses` rows in a row.
        response_mask: (B, T) bool.
        gamma: discount in (0, 1].
        responses: k, at least 2.
        kept: (B,) bool, the episodes that are trained on; None: all. The advantages of the rest have no meaning.
    Returns: advantages and rewards to go, both (B, T), zero on padding.
    Raises: ValueError if k is below 2.
    Source: Kool et al. 2019; Ahmadian et al. 2024 (arXiv 2402.14740).
    """
    if responses < 2:
        raise ValueError(f"{responses} response: a baseline needs others to the same query")
    to_go, _ = gae(rewards, torch.zeros_like(rewards), response_mask, gamma, 1.0)
    last = response_mask.sum(dim=1, keepdim=True) - 1
    places = torch.arange(rewards.shape[1], device=rewards.device).expand_as(rewards)
    held = to_go.gather(1, torch.minimum(places, last))
    weights = torch.ones_like(held[:, :1]) if kept is None else kept.unsqueeze(1).to(held.dtype)
    others, count = _of_others(held * weights, weights, responses)
    everywhere, all_count = _of_others(held * weights, weights, len(held))
    baseline = torch.where(count > 0, others / count.clamp(min=1), everywhere / all_count.clamp(min=1))
    return torch.where(response_mask, to_go - baseline, torch.zeros_like(to_go)), to_go


def _of_others(values: Tensor, weights: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Sums of values (B, T) and weights (B, 1) over the other rows of the same `size` rows in a row."""
    groups = [part.view(-1, size, part.shape[1]) for part in (values, weights)]
    sums, counts = ((group.sum(dim=1, keepdim=True) - group).flatten(0, 1) for group in groups)
    return sums, counts


def whiten(advantages: Tensor, mask: Tensor, centred: bool = True) -> Tensor:
    """Divides the masked entries by their unbiased standard deviation; with `centred`, their mean becomes 0.

    Args:
        advantages: (B, T) float.
        mask: (B, T) bool, at least two True.
        centred: False keeps the sign of each advantage.
    Returns: (B, T) float, (A - mean) / sqrt(variance + 1e-8), or without the mean; zero outside the mask.
    """
    return whitening(advantages, mask, centred)[0]


def whitening(advantages: Tensor, mask: Tensor, centred: bool = True) -> tuple[Tensor, Tensor]:
    """As `whiten`, and the factor () by which it multiplies: 1 / sqrt(variance + 1e-8)."""
    kept = advantages[mask]
    shift = kept.mean() if centred else 0.0
    scale = torch.rsqrt(kept.var() + 1e-8)
    whitened = (advantages - shift) * scale
    return torch.where(mask, whitened, torch.zeros_like(whitened)), scale
