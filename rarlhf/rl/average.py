"""The mean of the trained weights over the last iterations of a training.

A constant learning rate leaves the weights wandering around the policy they move to. The mean of the last ones takes
most of that out, for one addition an iteration (Polyak and Juditsky 1992; Izmailov et al. 2018, arXiv 1803.05407).
Training itself goes on with the last weights.
"""

from collections.abc import Mapping
from fractions import Fraction
from math import ceil

import torch
from torch import Tensor, nn

from rarlhf.rl.checkpoint import trained

PREFIX = "average/"  # of its tensors in a checkpoint


class WeightAverage:
    """A running mean in float32, begun with the first iteration that counts.

    Under several processes each keeps the same, since all have the same weights.
    """

    def __init__(self, policy: nn.Module, share: float, iterations: int) -> None:
        """Averages the weights after the last ceil(`share` x `iterations`) iterations; with share 0 it does nothing."""
        self.policy = policy
        self.before = iterations - ceil(Fraction(str(share)) * iterations)  # iterations that do not count
        self.mean: dict[str, Tensor] = {}

    @torch.no_grad()
    def add(self, iteration: int) -> None:
        """Takes in the weights after an iteration; iterations come in order, from 1."""
        count = iteration - self.before
        if count == 1:
            self.mean = {name: weight.detach().float().clone() for name, weight in trained(self.policy)}
        elif count > 1:
            for name, weight in trained(self.policy):
                self.mean[name].lerp_(weight.float(), 1 / count)

    @torch.no_grad()
    def apply(self) -> None:
        """Puts the mean in the place of the policy's weights, if there is one."""
        for name, weight in trained(self.policy) if self.mean else ():
            weight.copy_(self.mean[name])

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint keeps: nothing before the first iteration that counts."""
        return {PREFIX + name: mean for name, mean in self.mean.items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes back what `tensors` gave, out of all that a checkpoint holds."""
        devices = {name: weight.device for name, weight in trained(self.policy)}
        named = {name.removeprefix(PREFIX): mean for name, mean in tensors.items() if name.startswith(PREFIX)}
        self.mean = {name: mean.to(devices[name]) for name, mean in named.items()}
