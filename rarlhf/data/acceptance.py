"""What keeping one of several draws costs in KL.

A rule draws up to n answers and keeps the first that it accepts; if it accepts none, it keeps the best of the n. Where
an answer y is accepted with probability a(y), and Z is the mean of a, accepted answers have the density a(y) / Z
against the drawing policy, so their KL is E[log a] - log Z. The number k of draws to the first acceptance is geometric,
and H(k - 1) = 1 + 1/2 + ... + 1 / (k - 1) is an unbiased estimate of -log Z:

    sum over k of Z (1 - Z)^(k - 1) H(k - 1) = -log Z.

The best of n costs at most log n - (n - 1) / n (Beirami et al. 2024, arXiv 2401.01879). Where a(y) is 0 or 1, both
together are, in the mean, an upper bound of the KL for every Z and n.

Where a(y) is a chance, the same answer may be accepted or be the best of those that were not. The KL is at most that of
the pair of the answer and whether it was accepted, to any such pair whose answers are the policy's. Take the pair in
which an answer counts as not accepted with probability d (1 - a(y)), for some d in (0, 1]. Against the bound above, an
accepted answer then costs log a - log(1 - d (1 - a)) besides, which is at most 0, and the best of the others -log d. At
d = 1 nothing is gained from a; at a small d, answers that were not accepted are dear. `MISSED` stands between.
"""

from collections.abc import Sequence
from math import log

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

MISSED = 0.25  # d: the share of an answer's chance not to be accepted that counts as such in the bound


def best_of_n_nats(n: int) -> float:
    """Log n - (n - 1) / n, at most the KL of the best of n draws to the policy that drew them, nats.

    Raises: ValueError if n is below 1.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    return log(n) - (n - 1) / n


def nats_of_draws(draws: Sequence[int], accepted: Sequence[bool], n: int, chances: Array | None = None) -> Array:
    """(B,) nats for each kept answer, whose mean is at least the KL.

    Args:
        draws: B numbers of draws that were made, 1 to n.
        accepted: whether the last of them was accepted; otherwise the best of n was kept.
        n: draws at most.
        chances: (B,) a of the kept answers, read where they were accepted; None for a rule whose a is 0 or 1.
    """
    found, missed = _harmonic(n)[np.asarray(draws) - 1], best_of_n_nats(n)
    if chances is not None:
        a = np.where(accepted, chances, 1.0)
        found, missed = found + np.log(a / (1.0 - MISSED * (1.0 - a))), missed - log(MISSED)
    return np.where(np.asarray(accepted), found, missed)


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
