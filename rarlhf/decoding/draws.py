"""Rules that keep one of several draws: best of n, rejection, soft rejection. A scorer decides, nothing is trained."""

from collections.abc import Callable

import torch
from torch import Tensor

from rarlhf.config.baselines import BestOfNParams, RejectionParams, SoftRejectionParams
from rarlhf.config.errors import UserError
from rarlhf.decoding.rules import DecodingRule
from rarlhf.models.episodes import Episodes

ScoreOf = Callable[[Episodes], Tensor]
"""The scores (B,) of the episodes' texts."""


class BestOfN(DecodingRule):
    """The best of n draws by the score; n 1 is plain sampling. KL: at most log n - (n - 1) / n."""

    reshapes = False

    def __init__(self, params: BestOfNParams | RejectionParams | SoftRejectionParams, score: ScoreOf) -> None:
        self.draws = params.n
        self.score = score

    def value(self, episodes: Episodes) -> Tensor:
        """(B,) scores."""
        return self.score(episodes)


class Rejection(BestOfN):
    """The first of at most n draws whose score reaches the threshold; the best of the n if none does.

    With no limit on the draws its KL to the model is -log P(score >= threshold) for each prompt: rejection spends
    nothing on prompts whose answers pass anyway, where best of n spends the same on all.
    """

    def __init__(self, params: RejectionParams, score: ScoreOf) -> None:
        """Raises: UserError if the threshold is still `plan`."""
        super().__init__(params, score)
        self.threshold = planned(params.threshold, "threshold")

    def log_acceptance(self, values: Tensor) -> Tensor:
        """0 from the threshold on, minus infinity below."""
        return torch.where(values >= self.threshold, 0.0, -torch.inf)


class SoftRejection(BestOfN):
    """Accepts an answer of score s with probability exp(-(eta - s)+ / (alpha beta)).

    Accepted answers are exact draws of pi proportional to pi_model exp(-(eta - s)+ / (alpha beta)), which is the policy
    of highest CVaR_alpha at its KL if eta is its own alpha-quantile (`rarlhf.risk.plan`).
    """

    by_chance = True

    def __init__(self, params: SoftRejectionParams, score: ScoreOf) -> None:
        """Raises: UserError if eta or beta is still `plan`."""
        super().__init__(params, score)
        self.eta = planned(params.eta, "eta")
        self.scale = params.alpha * planned(params.kl_coef, "kl_coef")

    def log_acceptance(self, values: Tensor) -> Tensor:
        """-(eta - s)+ / (alpha beta)."""
        return log_acceptance_of(values, self.eta, self.scale)


def log_acceptance_of(scores: Tensor, eta: float, scale: float) -> Tensor:
    """-(eta - s)+ / scale, the logarithms of probabilities of acceptance; any shape, score units."""
    return -(eta - scores).clamp(min=0.0) / scale


def planned(value: float | str, key: str) -> float:
    """The number that stage `plan` has put in the place of `plan`.

    Raises: UserError if it has not.
    """
    if isinstance(value, str):
        raise UserError(f"{key} = {value!r}: only stage plan knows this number; give one, or run the pipeline")
    return value
