"""Offensive words by alt-profanity-check, as a function for `python:`; it needs no weights from a hub.

It is a linear model of a text's words and knows no context. So it is a judge beside a classifier, and a poor reward
model. The package ships its model as a pickle, which is as trusted as its code.
"""

from collections.abc import Sequence

try:
    from profanity_check import predict_prob
except ImportError as error:
    raise ImportError(
        "alt-profanity-check is not installed: pip install -e '.[judges]' -c constraints.txt, or name another scorer"
    ) from error


def probability(texts: Sequence[str]) -> list[float]:
    """The probability that each text is offensive, in [0, 1]; a scorer of it has sign -1."""
    return [float(value) for value in predict_prob(list(texts))]
