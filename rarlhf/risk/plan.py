"""The best policy that answers of a model allow, without training it: which weights, which eta, which beta.

N answers y to each of P prompts x were drawn from the reference policy and scored. A policy close to it is a weight for
each answer: pi(y|x) / pi_ref(y|x) is N w(x, y), up to the error of N draws. Among all policies whose mean KL is the
target, the one of highest E[u(s)] has w proportional to exp(u(s) / beta), with one beta for all prompts. For an aim

    J = (1 - mix) mean + mix CVaR_alpha,  CVaR_alpha = max over eta of E[eta - (eta - s)+ / alpha]

(Rockafellar and Uryasev 2000), u(s) = (1 - mix) s + mix (eta - (eta - s)+ / alpha). So for each eta there is one beta
at which the KL is the target, and the eta of the highest J is the plan; it is the planned policy's own alpha-quantile.
`rarlhf.data.frontier` has the same search over the enumerated answers of the small world.

Answers that another policy has drawn count with importance weights v proportional to pi_ref / that policy. Then w is
proportional to v exp(u / beta), and KL(x) = sum over y of w log(w / v).

How far it can be trusted: KL(x) is at most log N here, whatever the true policy's is. So no more than `TRUSTED` of the
largest KL is planned, and each plan has its effective number of answers, 1 / sum of w^2 of a prompt (Kish 1965).

Letters: P prompts, N answers to each.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import exp, log

import numpy as np
from numpy.typing import NDArray

from rarlhf.config.errors import UserError
from rarlhf.config.params import RiskParams

Array = NDArray[np.float64]

TRUSTED = 0.6  # of the largest KL that the answers can show; where it is higher, that of the policy itself is far above
CANDIDATES = 33  # values of eta that are tried, evenly spaced quantiles of all scores, before the best is refined
COLDEST, HOTTEST = 1e-4, 1e6  # search interval of beta, in ranges of the utility
LOW_DECILE = 0.1  # the share of prompts with the fewest effective answers, of which the plan tells the largest number


@dataclass(frozen=True)
class Answers:
    """Scored answers to prompts."""

    scores: Array  # (P, N) score units
    log_base: Array | None = None  # (P, N) log of pi_ref over the drawing policy, up to a constant a row; None: pi_ref

    def __post_init__(self) -> None:
        """Raises: ValueError for other shapes; UserError for a number that is not finite."""
        if self.scores.ndim != 2 or self.scores.shape[0] < 1 or self.scores.shape[1] < 2:
            raise ValueError(f"scores must be (P, N) with N of 2 at least, got {self.scores.shape}")
        if self.log_base is not None and self.log_base.shape != self.scores.shape:
            raise ValueError(f"log_base must be {self.scores.shape} as the scores, got {self.log_base.shape}")
        for name, values in (("scores", self.scores), ("log-ratios", self.log_base)):
            broken = 0 if values is None else int((~np.isfinite(values)).sum())
            if broken:
                raise UserError(
                    f"{broken:,} of {self.scores.size:,} {name} of the answers are not finite numbers; mend the scorer"
                )

    @cached_property
    def log_reference(self) -> Array:
        """(P, N) log v, the weights at which the answers stand for the reference policy; each row's sum to 1."""
        if self.log_base is None:
            return np.full(self.scores.shape, -log(self.scores.shape[1]))
        return self.log_base - _log_sum_exp(self.log_base)

    @cached_property
    def order(self) -> NDArray[np.intp]:
        """(P N,) indices of all scores, lowest first."""
        return np.argsort(self.scores, axis=None, kind="stable")


@dataclass(frozen=True)
class Aim:
    """What a plan maximises: (1 - mix) mean + mix CVaR_alpha of the scores."""

    mix: float  # in [0, 1]: 0 is the mean, 1 the CVaR
    alpha: float  # level of the CVaR in (0, 1]

    def __post_init__(self) -> None:
        """Raises: ValueError for a number out of range."""
        if not 0 <= self.mix <= 1:
            raise ValueError(f"mix must be in [0, 1], got {self.mix}")
        if not 0 < self.alpha <= 1:
            raise ValueError(f"alpha must be in (0, 1], got {self.alpha}")


@dataclass(frozen=True)
class PlannedPolicy:
    """The policy of highest aim at a KL, and what it is expected to reach on these prompts."""

    eta: float | None  # score units; None for the mean
    kl_coef: float  # beta, score units per nat
    kl: float  # nats per response, mean over prompts
    mean: float  # score units
    cvar: float  # CVaR at the aim's alpha, score units
    prompt_tail: float | None  # mean score over the prompts of the tail; None where no tail was given
    effective_samples: float  # answers to a prompt that its weights are worth, mean over prompts
    effective_samples_low: float  # the same at the lowest decile of the prompts
    kl_target: float  # nats per response that were asked for

    @property
    def capped(self) -> bool:
        """Whether the answers are too few, or too much alike, for the KL that was asked for."""
        return self.kl < self.kl_target * (1 - 1e-3)


@dataclass(frozen=True)
class FrontierRow:
    """What is attainable at a KL."""

    kl_target: float  # nats per response
    best_mean: PlannedPolicy
    best_cvar: PlannedPolicy


def aim_of(risk: RiskParams) -> Aim:
    """What a method's risk aims at.

    Raises: UserError for a measure that is neither mean nor CVaR nor a mixture of both.
    """
    mixes = {"none": 0.0, "cvar_ru": 1.0, "mean_cvar": risk.mix}
    if risk.measure not in mixes:
        raise UserError(f"risk.measure = {risk.measure!r} has no plan; take {', '.join(mixes)}, or another eta")
    return Aim(mixes[risk.measure], risk.alpha)


def utility(scores: Array, eta: float | None, aim: Aim) -> Array:
    """(1 - mix) s + mix (eta - (eta - s)+ / alpha) of scores of any shape; at mix 0 the scores, whatever eta is.

    Raises: ValueError if the aim needs an eta and there is none.
    """
    if aim.mix == 0:
        return scores
    if eta is None:
        raise ValueError("an aim with CVaR in it needs an eta")
    return (1 - aim.mix) * scores + aim.mix * (eta - np.maximum(eta - scores, 0.0) / aim.alpha)


def planned_weights(answers: Answers, eta: float | None, kl_coef: float, aim: Aim) -> Array:
    """(P, N) weight of each answer under the policy v exp(u / beta), up to a factor; each row sums to 1.

    Args:
        answers: P prompts with N answers each.
        eta: of the utility, score units; None for the mean.
        kl_coef: beta above 0.
        aim: what the utility is of.
    Raises: ValueError if beta is not above 0, or eta is missing.
    """
    if not kl_coef > 0:
        raise ValueError(f"kl_coef must be above 0, got {kl_coef}")
    logits = answers.log_reference + utility(answers.scores, eta, aim) / kl_coef
    return np.exp(logits - _log_sum_exp(logits))


def mean_kl(answers: Answers, weights: Array) -> float:
    """Mean over prompts of sum over y of w log(w / v), nats."""
    log_ratio = np.log(weights, out=np.zeros_like(weights), where=weights > 0) - answers.log_reference
    return float((weights * log_ratio).sum(axis=1).mean())


def weighted_cvar(answers: Answers, weights: Array, alpha: float) -> float:
    """Mean of the worst share `alpha` of the mixture of all prompts, each with its answers' weights; score units."""
    mass = np.minimum(weights.ravel()[answers.order].cumsum() / len(weights), alpha)
    return float(np.diff(mass, prepend=0.0) @ answers.scores.ravel()[answers.order] / alpha)


def effective_samples(weights: Array) -> Array:
    """(P,) answers that each prompt's weights are worth, 1 / sum of w^2, in [1, N]. Source: Kish 1965."""
    return 1.0 / (weights**2).sum(axis=1)


def largest_kl(answers: Answers) -> float:
    """The largest KL that is planned on these answers, nats: `TRUSTED` of what they can show.

    They can show the KL of the policy that takes each prompt's best answers, and no more than the logarithm of the
    effective number of answers that the reference's own weights leave.
    """
    greedy = _kl_at(answers, answers.scores, COLDEST * (float(np.ptp(answers.scores)) or 1.0))
    drawn = float(np.log(effective_samples(np.exp(answers.log_reference))).mean())
    return TRUSTED * max(0.0, min(greedy, drawn))


def solve(
    answers: Answers, aim: Aim, kl_target: float, eta: float | None = None, tail: NDArray[np.bool_] | None = None
) -> PlannedPolicy:
    """The policy of highest aim at a KL.

    Args:
        answers: P prompts with N answers each.
        aim: what is maximised.
        kl_target: nats per response, above 0; `largest_kl` is planned where that is lower.
        eta: None: the best one; else this one is kept, where the aim has one.
        tail: (P,) the prompts whose mean score the plan tells besides.
    Raises: ValueError if the target is not above 0. UserError if the answers leave nothing to choose from, because
        their scores are equal, or because all are on the same side of a given eta.
    """
    if not kl_target > 0:
        raise ValueError(f"kl_target must be above 0, got {kl_target}")
    wanted = min(kl_target, largest_kl(answers))
    if not wanted > 0:
        raise UserError(
            "all answers to each prompt have the same score, so there is nothing to plan: check reward.label, that "
            "reward.max_length leaves room for the response, and that the responses differ"
        )
    search = _Search(answers, aim, wanted)
    chosen = search.best() if eta is None or aim.mix == 0 else eta
    kl_coef = search.kl_coef(chosen)
    if kl_coef is None:
        raise UserError(
            f"risk.eta = {chosen:g}: a policy on the score capped there cannot be {wanted:.2f} nats away from the SFT "
            "model; raise it, lower kl.target, or set it to plan"
        )
    return _described(answers, aim, (chosen, kl_coef), kl_target, tail)


def frontier(
    answers: Answers, alpha: float, kls: Sequence[float], tail: NDArray[np.bool_] | None = None
) -> list[FrontierRow]:
    """The highest mean and the highest CVaR at each KL.

    Args:
        answers: P prompts with N answers each.
        alpha: level of the CVaR in (0, 1].
        kls: nats per response, each above 0; a plan's `kl` is lower where the answers do not reach it.
        tail: (P,) the prompts whose mean score is told besides.
    Raises: ValueError and UserError as `solve`.
    """
    mean, cvar = Aim(0.0, alpha), Aim(1.0, alpha)
    return [FrontierRow(kl, solve(answers, mean, kl, tail=tail), solve(answers, cvar, kl, tail=tail)) for kl in kls]


def reference(answers: Answers, alpha: float, tail: NDArray[np.bool_] | None = None) -> PlannedPolicy:
    """The reference policy itself, as a plan of no nats; its `kl_coef` is infinite."""
    return _measured(answers, np.exp(answers.log_reference), Aim(0.0, alpha), (None, np.inf), 0.0, tail)


def at_level(answers: Answers, plan: PlannedPolicy, aim: Aim, alpha: float) -> PlannedPolicy:
    """The plan of an aim with its CVaR told at another level than the aim's."""
    weights = planned_weights(answers, plan.eta, plan.kl_coef, aim)
    return replace(plan, cvar=weighted_cvar(answers, weights, alpha))


def caution(name: str, plan: PlannedPolicy) -> str | None:
    """A line for a plan of another KL than was asked for; None for any other.

    Args:
        name: of the method.
        plan: its plan.
    """
    if not plan.capped:
        return None
    return (
        f"{name}: planned for {plan.kl:.2f} nats instead of kl.target = {plan.kl_target:g}: the answers to a prompt "
        "are too few, or too much alike, to trust a plan of more; raise plan.train.samples, or lower kl.target"
    )


class _Search:
    """Looks for eta and beta on one set of answers."""

    def __init__(self, answers: Answers, aim: Aim, kl: float) -> None:
        self.answers = answers
        self.aim = aim
        self.kl = kl

    def best(self) -> float | None:
        """The eta of the highest aim; None for the mean, and the highest score where CVaR is the mean."""
        from scipy.optimize import minimize_scalar  # a third of a second to import

        scores, aim = self.answers.scores, self.aim
        if aim.mix == 0:
            return None
        if aim.alpha == 1:
            return float(scores.max())
        candidates = np.unique(np.quantile(scores, np.linspace(0, 1, CANDIDATES)))
        values = [self.value(float(eta)) for eta in candidates]
        place = int(np.argmax(values))
        around = candidates[max(place - 1, 0)], candidates[min(place + 1, len(candidates) - 1)]
        found = minimize_scalar(lambda eta: -self.value(eta), bounds=around, method="bounded")
        return float(found.x) if -found.fun > values[place] else float(candidates[place])

    def value(self, eta: float) -> float:
        """The aim's value at the KL with this eta; where it does not reach it, less than any value that is reached."""
        kl_coef = self.kl_coef(eta)
        if kl_coef is None:
            return float(self.answers.scores.min() - np.ptp(self.answers.scores))
        weights = planned_weights(self.answers, eta, kl_coef, self.aim)
        mean = float((weights * self.answers.scores).sum() / len(weights))
        return (1 - self.aim.mix) * mean + self.aim.mix * weighted_cvar(self.answers, weights, self.aim.alpha)

    def kl_coef(self, eta: float | None) -> float | None:
        """The beta at which the KL is the target, to nine digits; None where the utility does not reach it."""
        from scipy.optimize import brentq

        utilities = utility(self.answers.scores, eta, self.aim)
        span = float(np.ptp(utilities))
        if span == 0 or _kl_at(self.answers, utilities, COLDEST * span) < self.kl:
            return None

        def excess(log_beta: float) -> float:
            return _kl_at(self.answers, utilities, span * exp(log_beta)) - self.kl

        return span * exp(brentq(excess, log(COLDEST), log(HOTTEST), xtol=1e-9))


def _kl_at(answers: Answers, utilities: Array, kl_coef: float) -> float:
    """Mean KL of v exp(u / beta), nats: E[u] / beta - log E_v[exp(u / beta)]."""
    tilts = (utilities - utilities.max(axis=1, keepdims=True)) / kl_coef
    weights = np.exp(answers.log_reference + tilts)
    totals = weights.sum(axis=1)
    return float(((weights * tilts).sum(axis=1) / totals - np.log(totals)).mean())


def _described(
    answers: Answers,
    aim: Aim,
    chosen: tuple[float | None, float],
    kl_target: float,
    tail: NDArray[np.bool_] | None,
) -> PlannedPolicy:
    return _measured(answers, planned_weights(answers, *chosen, aim), aim, chosen, kl_target, tail)


def _measured(
    answers: Answers,
    weights: Array,
    aim: Aim,
    chosen: tuple[float | None, float],
    kl_target: float,
    tail: NDArray[np.bool_] | None,
) -> PlannedPolicy:
    by_prompt = (weights * answers.scores).sum(axis=1)
    worth = effective_samples(weights)
    return PlannedPolicy(
        *chosen,
        kl=mean_kl(answers, weights),
        mean=float(by_prompt.mean()),
        cvar=weighted_cvar(answers, weights, aim.alpha),
        prompt_tail=None if tail is None else float(by_prompt[tail].mean()),
        effective_samples=float(worth.mean()),
        effective_samples_low=float(np.quantile(worth, LOW_DECILE)),
        kl_target=kl_target,
    )


def _log_sum_exp(values: Array) -> Array:
    """(P, 1) log of the sum of exp over each row."""
    top = values.max(axis=1, keepdims=True)
    return top + np.log(np.exp(values - top).sum(axis=1, keepdims=True))
