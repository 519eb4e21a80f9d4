"""How long the step of a fit is: as long as brings the policy to the KL that was planned.

A model that saw some answers to some prompts does not move as far as the weights of the answers say. By how much it
falls short depends on the model, the passes and the rate. Its direction can be followed further. So the weights go
along the line from the SFT model through the fitted one,

    theta(c) = theta_sft + c (theta_fit - theta_sft),

until the policy's KL is the target; near c = 1 the KL grows about as c^2. Sources: Ramé et al. 2024 (arXiv 2406.16768),
where c is below 1; Zheng et al. 2024 (arXiv 2404.16792), where it is above.
"""

from collections.abc import Callable
from math import log
from typing import NamedTuple

import torch
from torch import nn

NEAR = (
    0.03  # share of the target within which the search is done; a KL measured on some thousand answers is no more exact
)
PROBES = 5  # lengths that are tried at most
SHORTEST, LONGEST = (
    0.25,
    2.0,
)  # a fit that needs more than this is not the planned one
POWERS = 1.0, 4.0  # of the length, as which the KL is taken to grow; 2 before two lengths were tried


class Length(NamedTuple):
    """A length of the step, and where it ends."""

    factor: float  # c
    kl: float  # nats per response


class Line:
    """The line through a model's trained weights of now and of later."""

    def __init__(self, module: nn.Module) -> None:
        self.trained = [p for p in module.parameters() if p.requires_grad]
        self.start = [p.detach().clone() for p in self.trained]
        self.end: list[torch.Tensor] = []

    def through(self) -> None:
        """Takes the weights of now as those of c = 1."""
        self.end = [p.detach().clone() for p in self.trained]

    @torch.no_grad()
    def go(self, factor: float) -> None:
        """Sets the weights to those of c = `factor`."""
        for parameter, start, end in zip(self.trained, self.start, self.end, strict=True):
            parameter.copy_(end if factor == 1 else torch.lerp(start, end, factor))


def find_length(kl_of: Callable[[float], float], target: float) -> Length:
    """The length whose KL is nearest to the target, of those tried.

    Args:
        kl_of: measures the KL at a length, nats per response; not above 0 where it is too small to be measured.
        target: nats per response, above 0.
    """
    tried = [Length(1.0, kl_of(1.0))]
    while off(tried[-1], target) > NEAR and len(tried) < PROBES:
        factor = next_factor(tried, target)
        if any(factor == length.factor for length in tried):
            break  # at a bound
        tried.append(Length(factor, kl_of(factor)))
    return min(tried, key=lambda length: off(length, target))


def next_factor(tried: list[Length], target: float) -> float:
    """The length at which the KL would be the target, were it a power of the length."""
    last, power = tried[-1], 2.0
    if len(tried) > 1:
        (before, kl_before), (now, kl_now) = tried[-2:]
        slope = (log(measurable(kl_now, target)) - log(measurable(kl_before, target))) / (log(now) - log(before))
        power = min(max(slope, POWERS[0]), POWERS[1])
    factor = last.factor * (target / measurable(last.kl, target)) ** (1 / power)
    return min(max(factor, SHORTEST), LONGEST)


def measurable(kl: float, target: float) -> float:
    """A KL, or the smallest that is told from 0 beside this target."""
    return max(kl, 0.01 * target)


def off(length: Length, target: float) -> float:
    """By which share of the target a length misses it."""
    return abs(length.kl / target - 1)
