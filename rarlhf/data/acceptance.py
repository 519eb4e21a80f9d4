"""What keeping one of several draws costs in KL.

A rule draws up to n answers and keeps the first that it accepts; if it accepts none, it keeps the best of the n. Where
an answer y is accepted with probability a(y), and Z is the mean of a, accepted answers have the density a(y) / Z
against the drawing policy, so their KL is E[log a] - log Z. The number k of draws to the first acceptance is geometric,
and H(k - 1) = 1 + 1/2 + ... + 1 / (k - 1) is an unbiased estimate of -log Z:

    sum over k of Z (1 - Z)^(k - 1) H(k - 1) = -log Z.

The best of n costs at most log n - (n - 1) / n (Beirami et al. 2024, arXiv 2401.01879). Where a(y) is 0 or 1, both
together are, in the mean, an upper bound of the KL for every Z and n.

Where a(y) is a chance, the same answer may be accepted or be the best of those that were not. Then the KL is at most
that of accepted answers and that of the others, each with its share: 1 - q and q = (1 - Z)^n. The harmonic numbers fall
short of -(1 - q) log Z by q E[1 / K + ... + 1 / (K + n - 1)], K geometric as k, which is at most q H(n). So each answer
that was not accepted costs H(n) more.
"""

from collections.abc import Sequence
from math import log

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def best_of_n_nats(n: int) -> float:
    """Log n - (n - 1) / n, at most the KL of the best of n draws to the policy that drew them, nats.

    Raises: ValueError if n is below 1.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    return log(n) - (n - 1) / n


def nats_of_draws(draws: Sequence[int], accepted: Sequence[bool], n: int, by_chance: bool = False) -> Array:
    """(B,) nats for each kept answer, whose mean is at least the KL; without log a of a rule that accepts by chance.

    Args:
        draws: B numbers of draws that were made, 1 to n.
        accepted: whether the last of them was accepted; otherwise the best of n was kept.
        n: draws at most.
        by_chance: whether some answers are accepted with a probability between 0 and 1.
    """
    known = _harmonic(n)
    missed = best_of_n_nats(n) + (known[n] if by_chance else 0.0)
    return np.where(np.asarray(accepted), known[np.asarray(draws) - 1], missed)


def expected_nats(shares: Array, n: int) -> Array:
    """What `nats_of_draws` is in the mean where this share of a prompt's answers is accepted, and never by chance.

    It rises as Z falls from 1 to about 1 / n, and then falls by up to 0.2 nats to those of the best of n.

    Args:
        shares: Z of each prompt, any shape, in [0, 1].
        n: draws at most.
    """
    numbers = np.arange(1, n + 1)
    missed = (1.0 - shares)[..., None] ** (numbers - 1)
    found = (shares[..., None] * missed * _harmonic(n)[numbers - 1]).sum(axis=-1)
    return found + (1.0 - shares) ** n * best_of_n_nats(n)


def threshold_at(scores: Array, kl_target: float, n: int) -> float:
    """The score from which on draws are accepted, so that rejection costs about `kl_target` nats; score units.

    It is one of the given scores: the expected nats are the target or more there and less at the next lower score. It
    is the highest score where n draws cannot cost the target.

    Args:
        scores: (P, N) of answers of the drawing policy.
        kl_target: nats per response, above 0.
        n: draws at most.
    """
    candidates = np.unique(scores)
    low, high = 0, len(candidates) - 1
    while low < high:  # below `low` the expected nats are less than the target, at `high` they are not
        middle = (low + high) // 2
        shares = (scores >= candidates[middle]).mean(axis=1)
        if expected_nats(shares, n).mean() >= kl_target:
            high = middle
        else:
            low = middle + 1
    return float(candidates[low])


def _harmonic(n: int) -> Array:
    """(n + 1,) H(0) = 0, H(1) = 1, H(2) = 3/2, ..."""
    return np.concatenate([[0.0], np.cumsum(1.0 / np.arange(1, n + 1))])
