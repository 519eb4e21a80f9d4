"""The length of a fit's step: the search on known curves, and the line of a module."""

import pytest
import torch
from torch import nn

from rarlhf.training.step_length import LONGEST, NEAR, PROBES, SHORTEST, Line, find_length


@pytest.mark.parametrize("power", [1.3, 2.0, 3.0])
@pytest.mark.parametrize("at_one", [0.3, 0.6, 1.0, 1.9])
def test_the_search_finds_where_a_power_law_reaches_the_target(power: float, at_one: float) -> None:
    tried: list[float] = []

    def kl_of(factor: float) -> float:
        tried.append(factor)
        return at_one * factor**power

    found = find_length(kl_of, 1.0)
    reachable = SHORTEST <= (1 / at_one) ** (1 / power) <= LONGEST
    assert len(tried) <= PROBES
    assert not reachable or abs(found.kl - 1.0) <= NEAR
    assert found.kl == pytest.approx(at_one * found.factor**power)


@pytest.mark.parametrize(("kl", "bound"), [(0.01, LONGEST), (900.0, SHORTEST)])
def test_beyond_the_bounds_it_stays_at_the_bound(kl: float, bound: float) -> None:
    assert find_length(lambda factor: kl * factor**2, 1.0).factor == bound


def test_the_nearest_of_the_tried_is_taken() -> None:
    noisy = {1.0: 0.9}
    found = find_length(lambda factor: noisy.get(factor, 3.0), 1.0)
    assert found == (1.0, 0.9)


def test_a_line_begins_at_the_start_and_goes_through_the_fit() -> None:
    module = nn.Linear(2, 1)
    module.bias.requires_grad_(False)
    start, bias = module.weight.detach().clone(), module.bias.detach().clone()
    line = Line(module)
    with torch.no_grad():
        module.weight.add_(1.0)
    line.through()
    for factor in (0.0, 0.5, 1.5, 1.0):
        line.go(factor)
        torch.testing.assert_close(module.weight.detach(), start + factor)
    assert torch.equal(module.bias, bias)
