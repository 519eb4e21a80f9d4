"""How well scores tell the two classes of rows apart."""

from math import nan

from torch import Tensor


def area_under_curve(scores: Tensor, wanted: Tensor) -> float:
    """Share of (wanted, unwanted) pairs in which the wanted one scores higher; a tie counts one half.

    Args:
        scores: (N,) float.
        wanted: (N,) bool.

    Returns: Mann and Whitney's U over the number of pairs, in [0, 1]; NaN where there is no pair.
    """
    from scipy.stats import mannwhitneyu

    first, second = (scores[chosen].double().numpy() for chosen in (wanted, ~wanted))
    if not (len(first) and len(second)):
        return nan
    return float(mannwhitneyu(first, second, method="asymptotic").statistic) / len(first) / len(second)
