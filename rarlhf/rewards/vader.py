"""Sentiment by VADER's lexicon, as a function for `python:`; it needs no weights.

It sums the valence of words with rules for negation and emphasis (Hutto and Gilbert 2014) and knows no context. So it
is a judge beside a classifier, and a poor reward model.
"""

from collections.abc import Sequence

try:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
except ImportError as error:
    raise ImportError(
        "vaderSentiment is not installed: pip install -e '.[judges]' -c constraints.txt, or name another scorer"
    ) from error

ANALYZER = SentimentIntensityAnalyzer()


def compound(texts: Sequence[str]) -> list[float]:
    """VADER's compound score of each text, in [-1, 1]: how positive its words are."""
    return [float(ANALYZER.polarity_scores(text)["compound"]) for text in texts]
