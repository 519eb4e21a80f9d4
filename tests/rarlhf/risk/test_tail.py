"""Tail selection, VaR and CVaR against hand numbers and identities."""

from fractions import Fraction

import pytest
import torch

from rarlhf.risk.tail import cvar, value_at_risk, worst_episodes

RETURNS = torch.tensor([0.0, -3.0, 2.0, -1.0])


def test_worst_episodes_in_batch_order() -> None:
    assert worst_episodes(RETURNS, 2).tolist() == [False, True, False, True]


def test_ties_go_to_the_lower_index() -> None:
    assert worst_episodes(torch.tensor([1.0, 0.0, 0.0, 0.0]), 2).tolist() == [False, True, True, False]


@pytest.mark.parametrize("count", [0, 5])
def test_refuses_a_count_outside_the_batch(count: int) -> None:
    with pytest.raises(ValueError, match=r"count must be in 1\.\.4"):
        worst_episodes(RETURNS, count)


def test_refuses_nan() -> None:
    with pytest.raises(ValueError, match="NaN"):
        worst_episodes(torch.tensor([0.0, float("nan")]), 1)


def test_cvar_counts_the_last_episode_by_its_fraction() -> None:
    # alpha .4 of 4 is 1.6 episodes: (-3 + .6 * -1) / 1.6 = -2.25; the mean of the ceil(1.6) = 2 worst would be -2.
    torch.testing.assert_close(cvar(RETURNS, 0.4), torch.tensor(-2.25))


def test_cvar_is_the_rockafellar_uryasev_maximum() -> None:
    returns = torch.randn(37, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for level in (0.05, 0.3, 0.77):
        objective = [eta - (eta - returns).clamp(min=0).mean() / level for eta in returns]  # maximal at a sample
        torch.testing.assert_close(cvar(returns, level), torch.stack(objective).max())


def test_cvar_identities() -> None:
    returns = torch.randn(23, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    levels = [Fraction(k, 20) for k in range(1, 21)]
    tails = torch.stack([cvar(returns, level) for level in levels])
    assert torch.all(tails[1:] >= tails[:-1] - 1e-12)  # never falls as the level rises
    torch.testing.assert_close(tails[-1], returns.mean())
    torch.testing.assert_close(cvar(3.0 * returns + 2.0, 0.3), 3.0 * cvar(returns, 0.3) + 2.0)
    torch.testing.assert_close(cvar(returns.flip(0), 0.3), cvar(returns, 0.3))
    assert all(cvar(returns, level) <= value_at_risk(returns, level) for level in levels)


def test_value_at_risk_is_an_order_statistic() -> None:
    assert value_at_risk(RETURNS, 0.25) == -3.0  # R_(1)
    assert value_at_risk(RETURNS, 0.26) == -1.0  # R_(2)
    assert value_at_risk(RETURNS, 1.0) == 2.0
    assert value_at_risk(torch.arange(25.0), 0.28) == 6.0  # R_(7), though .28 is a little more in binary


@pytest.mark.parametrize("level", [0.0, 1.5, -0.1])
def test_refuses_levels_outside_the_unit_interval(level: float) -> None:
    with pytest.raises(ValueError, match=r"level must be in \(0, 1\]"):
        cvar(RETURNS, level)


def test_refuses_no_returns() -> None:
    with pytest.raises(ValueError, match="non-empty vector"):
        value_at_risk(torch.empty(0), 0.5)
