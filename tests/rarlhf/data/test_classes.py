"""The area under the curve, by hand and over all pairs."""

from math import isnan

import pytest
import torch

from rarlhf.data.classes import area_under_curve


def test_area_under_curve_by_hand_with_a_tie() -> None:
    scores = torch.tensor([2.0, 1.0, 1.0, 0.0])
    wanted = torch.tensor([True, True, False, False])
    # pairs (wanted, unwanted): 2 > 1, 2 > 0, 1 = 1 counts a half, 1 > 0
    assert area_under_curve(scores, wanted) == 3.5 / 4
    assert area_under_curve(-scores, wanted) == 0.5 / 4
    assert area_under_curve(torch.zeros(4), wanted) == 0.5
    assert isnan(area_under_curve(scores, torch.ones(4, dtype=torch.bool)))  # no unwanted row, so no pair


def test_area_under_curve_against_all_pairs() -> None:
    draws = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 5, (23,), generator=draws).float()
    wanted = torch.rand(23, generator=draws) < 0.4
    pairs = [(a, b) for a in scores[wanted].tolist() for b in scores[~wanted].tolist()]
    expected = sum((a > b) + 0.5 * (a == b) for a, b in pairs) / len(pairs)
    assert area_under_curve(scores, wanted) == pytest.approx(expected)
