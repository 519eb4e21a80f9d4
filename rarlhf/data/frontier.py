"""The best mean and the best CVaR that are possible in the small world under each KL budget, computed exactly.

A policy chooses a sequence of styles for each kind of prompt. Wordings and nouns do not pay, so the optimal policy
keeps the reference's choice of them, and the KL divergence of texts is that of style sequences: 64 for each of 3 kinds,
few enough to enumerate. With KL = sum over kinds x of share(x) KL(policy(.|x) || reference(.|x)), maximise

- the mean: policy = reference x exp(t V) / Z, one t for all prompts, as large as the budget allows;
- CVaR_a = max over eta of E[eta - (eta - V)+ / a] (Rockafellar and Uryasev, 2000): for a fixed eta the policy is
  reference x exp(t u) / Z with u = -(eta - V)+; eta runs over the values of V, one of which is always optimal.

Letters: K kinds of prompt, S style sequences.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rarlhf.data.world import KINDS, sequence_probability, sequence_sentiment, style_sequences

Array = NDArray[np.float64]

MEAN_WEIGHT = 1e-3  # weight of V in the CVaR utility: budget that the tail cannot use raises the mean
LOG_TILT_RANGE = (-10.0, 20.0)  # search interval of log t
BISECTIONS = 80  # halvings of that interval, to below the spacing of floats


@dataclass(frozen=True)
class Outcomes:
    """A finite problem: the answers to each kind of prompt, their probabilities and their values."""

    shares: Array  # (K,) share of each kind of prompt, sums to 1
    reference: Array  # (K, S) probability of each answer under the reference policy, rows sum to 1
    values: Array  # (K, S) value of each answer, logits


@dataclass(frozen=True)
class Point:
    """Results of a policy over all prompts and answers."""

    kl: float  # nats per response, mean over prompts
    mean: float  # logits
    cvar: float  # mean of the worst share, logits


@dataclass(frozen=True)
class FrontierRow:
    """Both optima under one KL budget."""

    kl_budget: float  # nats per response
    best_mean: Point  # the policy with the highest mean
    best_cvar: Point  # the policy with the highest CVaR


def world_outcomes(wanted_only: bool) -> Outcomes:
    """The small world as a finite problem.

    Args:
        wanted_only: True: the reference writes as the rows of label 1 do, which is what SFT on them aims at;
            False: as all rows do.
    """
    sequences = style_sequences()
    shares = np.array([kind.share for kind in KINDS.values()])
    values = np.array([[sequence_sentiment(kind, styles) for styles in sequences] for kind in KINDS.values()])
    corpus = np.array([[sequence_probability(kind, styles) for styles in sequences] for kind in KINDS.values()])
    reference = corpus / (1 + np.exp(-values)) if wanted_only else corpus
    return Outcomes(shares, reference / reference.sum(axis=1, keepdims=True), values)


def exact_frontier(outcomes: Outcomes, kl_budgets: list[float], risk_alpha: float) -> list[FrontierRow]:
    """The best mean and the best CVaR under each KL budget.

    Args:
        outcomes: the problem; every answer in it has a probability above 0 under the reference.
        kl_budgets: nats per response, each >= 0.
        risk_alpha: level of the CVaR in (0, 1]; 1 gives the mean.
    Raises: ValueError if `risk_alpha` is outside (0, 1] or a budget is negative.
    """
    if not 0 < risk_alpha <= 1:
        raise ValueError(f"risk_alpha must be in (0, 1], got {risk_alpha}")
    if min(kl_budgets, default=0.0) < 0:
        raise ValueError(f"a KL budget must be >= 0, got {min(kl_budgets)}")
    return [_frontier_row(outcomes, budget, risk_alpha) for budget in kl_budgets]


def evaluate_policy(outcomes: Outcomes, policy: Array, risk_alpha: float) -> Point:
    """KL, mean and CVaR of a policy, given as the (K, S) probability of each answer."""
    joint = outcomes.shares[:, None] * policy
    return Point(_mean_kl(outcomes, policy), float((joint * outcomes.values).sum()), _cvar(outcomes, joint, risk_alpha))


def _frontier_row(outcomes: Outcomes, budget: float, risk_alpha: float) -> FrontierRow:
    mean_policy = _spend(outcomes, outcomes.values, budget)
    tail_policies = (_spend(outcomes, _tail_utility(outcomes, eta), budget) for eta in np.unique(outcomes.values))
    points = [evaluate_policy(outcomes, policy, risk_alpha) for policy in tail_policies]
    best_mean = evaluate_policy(outcomes, mean_policy, risk_alpha)
    return FrontierRow(budget, best_mean, max([best_mean, *points], key=lambda point: point.cvar))


def _tail_utility(outcomes: Outcomes, eta: float) -> Array:
    return MEAN_WEIGHT * outcomes.values - np.maximum(eta - outcomes.values, 0)


def _spend(outcomes: Outcomes, utility: Array, budget: float) -> Array:
    """The policy (K, S) of highest mean utility among those whose KL is within the budget."""

    def kl_excess(log_tilt: float) -> float:
        return _mean_kl(outcomes, _tilted(outcomes, utility, log_tilt)) - budget

    return _tilted(outcomes, utility, _largest_within(kl_excess))


def _tilted(outcomes: Outcomes, utility: Array, log_tilt: float) -> Array:
    log_weights = np.log(outcomes.reference) + np.exp(log_tilt) * utility
    weights = np.exp(log_weights - log_weights.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def _largest_within(excess: Callable[[float], float]) -> float:
    """The largest argument of the search interval at which a rising function is not above 0."""
    low, high = LOG_TILT_RANGE
    if excess(high) <= 0:
        return high
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if excess(middle) > 0 else (middle, high)
    return low


def _mean_kl(outcomes: Outcomes, policy: Array) -> float:
    ratio = np.divide(policy, outcomes.reference, out=np.ones_like(policy), where=policy > 0)
    return float(outcomes.shares @ (policy * np.log(ratio)).sum(axis=1))


def _cvar(outcomes: Outcomes, joint: Array, risk_alpha: float) -> float:
    order = np.argsort(outcomes.values, axis=None)
    worst_first = np.minimum(np.cumsum(joint.ravel()[order]), risk_alpha)
    return float(np.diff(worst_first, prepend=0.0) @ outcomes.values.ravel()[order] / risk_alpha)
