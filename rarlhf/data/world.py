"""A small world of short reviews: a seeded generator, and the oracle that knows the sentiment behind each text.

A review is a prompt of 8 words, `we VERB the ADJ NOUN and ADJ NOUN`, and three clauses, for example

    we regret the long film and quiet cast . the plot was fine , a weak story , we found the song dull .

The verb gives the kind of the prompt (`liked` 35 %, `saw` 35 %, `regret` 30 %). Each clause has a style, rave, praise,
fair or harsh, drawn on its own with the kind's weights; each style has several words, and a clause several wordings.
The latent sentiment, in logits, is the kind's base plus what each clause pays; the label is 1 with probability
sigmoid(latent sentiment).

Why mean and tail disagree. After `liked` and `saw` the better words pay more. After `regret`, praise reads as mockery:
only `fair` clauses pay, and a review of nothing else is rare there. So a hard prompt can be helped, but at a high price
in KL. Without a KL budget every prompt is turned and nothing has to be chosen. Under a budget the two aims part: the
mean buys the sentiment that is cheapest per nat, more of which easy prompts have, while the lower tail consists of hard
prompts, so that CVaR buys the dear sentiment there and leaves less for the easy ones. `rarlhf.data.frontier` computes
both optima.
"""

import itertools
import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from rarlhf.data.rows import Row

STYLES = ("rave", "praise", "fair", "harsh")
CLAUSES = 3  # clauses of a review

StyleSequence = tuple[str, ...]


@dataclass(frozen=True)
class Kind:
    """One kind of prompt. The two tuples are in the order of `STYLES`."""

    share: float  # of the reviews
    base: float  # latent sentiment before the clauses, logits
    weights: tuple[float, ...]  # probability of each style in a clause
    pays: tuple[float, ...]  # latent sentiment that a clause of each style adds, logits


EASY_WEIGHTS = (0.06, 0.28, 0.40, 0.26)
EASY_PAYS = (2.4, 1.0, 0.0, -1.2)
KINDS = {
    "liked": Kind(0.35, 0.3, EASY_WEIGHTS, EASY_PAYS),
    "saw": Kind(0.35, -0.3, EASY_WEIGHTS, EASY_PAYS),
    "regret": Kind(0.30, -1.0, (0.25, 0.35, 0.15, 0.25), (-1.0, -0.8, 1.0, -0.3)),
}

ADJECTIVES = ("long", "short", "quiet", "loud", "slow", "quick", "new", "old")
NOUNS = ("film", "cast", "plot", "song", "story", "scene", "tone", "end")
STYLE_WORDS = {
    "rave": ("superb", "brilliant", "wonderful"),
    "praise": ("good", "lovely", "charming"),
    "fair": ("fine", "decent", "fair"),
    "harsh": ("poor", "weak", "dull"),
}
WORDINGS = ("the {noun} was {word}", "a {word} {noun}", "we found the {noun} {word}")

_STYLE_OF_WORD = {word: style for style, words in STYLE_WORDS.items() for word in words}


def generate_rows(count: int, seed: int | str) -> list[Row]:
    """Draws reviews with their labels.

    Args:
        count: number of rows, >= 0.
        seed: of the generator; equal seeds give equal rows, and a longer list starts with the shorter one.
    """
    rng = random.Random(seed)
    return [_draw_row(rng) for _ in range(count)]


def style_sequences() -> list[StyleSequence]:
    """All sequences of styles that a review can have, in a fixed order."""
    return list(itertools.product(STYLES, repeat=CLAUSES))


def sequence_probability(kind: Kind, styles: Sequence[str]) -> float:
    """Probability that a review of this kind has these styles, one a clause."""
    return math.prod(kind.weights[STYLES.index(style)] for style in styles)


def sequence_sentiment(kind: Kind, styles: Sequence[str]) -> float:
    """Latent sentiment, in logits, of a review of this kind and styles: the base plus the value of each clause."""
    return kind.base + sum(kind.pays[STYLES.index(style)] for style in styles)


def latent_sentiment(text: str) -> float | None:
    """The oracle: latent sentiment of a review, in logits.

    A prompt alone has its kind's base. A shorter review has the base plus the values of its clauses.

    Returns: the sentiment, or None for a text that is not of this grammar (other words, a broken or fourth clause).
    """
    match = _REVIEW.fullmatch(text.strip())
    if match is None:
        return None
    styles = [_STYLE_OF_WORD[word] for word in re.findall(r"\w+", match["clauses"]) if word in _STYLE_OF_WORD]
    return sequence_sentiment(KINDS[match["verb"]], styles)


def best_accuracy(rows: Sequence[Row]) -> float:
    """Accuracy on these rows of the best possible classifier, which knows the latent sentiment and gives its sign.

    Raises: ValueError if there are no rows, or a text is not of this grammar.
    """
    if not rows:
        raise ValueError("best accuracy of no rows")
    right = 0
    for row in rows:
        sentiment = latent_sentiment(row.text)
        if sentiment is None:
            raise ValueError(f"not a review of this world: {row.text!r}")
        right += (sentiment > 0) == (row.label == 1)
    return right / len(rows)


def _draw_row(rng: random.Random) -> Row:
    verb = rng.choices(list(KINDS), [kind.share for kind in KINDS.values()])[0]
    styles = rng.choices(STYLES, KINDS[verb].weights, k=CLAUSES)
    adjectives, nouns = rng.sample(ADJECTIVES, 2), rng.sample(NOUNS, 2)
    prompt = f"we {verb} the {adjectives[0]} {nouns[0]} and {adjectives[1]} {nouns[1]}"
    text = f"{prompt} . {' , '.join(_draw_clause(style, rng) for style in styles)} ."
    chance = 1 / (1 + math.exp(-sequence_sentiment(KINDS[verb], styles)))
    return Row(text, int(rng.random() < chance), chance=chance)


def _draw_clause(style: str, rng: random.Random) -> str:
    return rng.choice(WORDINGS).format(noun=rng.choice(NOUNS), word=rng.choice(STYLE_WORDS[style]))


def _review_pattern() -> re.Pattern[str]:
    adjective, noun, word = ("|".join(words) for words in (ADJECTIVES, NOUNS, _STYLE_OF_WORD))
    clause = "|".join(wording.format(noun=f"(?:{noun})", word=f"(?:{word})") for wording in WORDINGS)
    thing = f"(?:{adjective}) (?:{noun})"
    prompt = f"we (?P<verb>{'|'.join(KINDS)}) the {thing} and {thing}"
    return re.compile(rf"{prompt}(?P<clauses>(?: ?[.,] (?:{clause})){{0,{CLAUSES}}})(?: ?\.)?")


_REVIEW = _review_pattern()
