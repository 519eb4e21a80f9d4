"""The generator writes what the oracle reads, with the shares and chances it states."""

import math

import pytest

from rarlhf.data.rows import Row
from rarlhf.data.world import (
    ADJECTIVES,
    CLAUSES,
    KINDS,
    NOUNS,
    STYLE_WORDS,
    STYLES,
    best_accuracy,
    generate_rows,
    latent_sentiment,
    sequence_probability,
    sequence_sentiment,
    style_sequences,
)

PROMPT = "we regret the long film and quiet cast"


def test_equal_seeds_give_equal_rows_and_other_seeds_others():
    assert generate_rows(50, 3) == generate_rows(50, 3)
    assert generate_rows(50, 3) != generate_rows(50, 4)


def test_longer_list_starts_with_the_shorter_one():
    assert generate_rows(20, "a")[:7] == generate_rows(7, "a")


def test_texts_are_varied():
    rows = generate_rows(2000, 1)
    assert len({row.text for row in rows}) > 1990
    assert len({row.text.split(" . ")[0] for row in rows}) > 1000


def test_every_generated_text_is_read_and_its_prompt_is_its_first_eight_words():
    for row in generate_rows(500, 5):
        words = row.text.split()
        assert latent_sentiment(row.text) is not None
        assert latent_sentiment(" ".join(words[:8])) == KINDS[words[1]].base
        assert words[8] == "."
        assert len(words) <= 48
        assert len(words) - 8 + 1 <= 24  # the response with its end of text


def test_words_are_few_and_belong_to_one_list():
    styled = [word for words in STYLE_WORDS.values() for word in words]
    words = [*styled, *ADJECTIVES, *NOUNS]
    assert len(words) == len(set(words))
    assert len({word for row in generate_rows(3000, 2) for word in row.text.split()}) <= 60


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (PROMPT, -1.0),
        (f"{PROMPT} . the plot was fine , a decent story , we found the song fair .", 2.0),  # -1 + 3 x 1
        (f"{PROMPT} . a superb plot , a good story , we found the song poor .", -3.1),  # -1 - 1 - .8 - .3
        (f"{PROMPT} . a superb plot", -2.0),  # -1 - 1
        ("we liked the old end and new tone . a superb plot , a good plot , a dull plot .", 2.5),  # .3 + 2.4 + 1 - 1.2
        ("we saw the old end and new tone. a weak plot, a fine plot, a fine plot.", -1.5),  # -.3 - 1.2
    ],
)
def test_oracle_by_hand(text, expected):
    assert latent_sentiment(text) == pytest.approx(expected)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "we hated the long film and quiet cast .",
        "we regret the long film and quiet",
        f"{PROMPT} . the plot was",
        f"{PROMPT} . the plot was plot .",
        f"{PROMPT} . the plot was fine nothing",
        f"{PROMPT} {' '.join([', a fine plot'] * (CLAUSES + 1))} .",
    ],
)
def test_oracle_reads_nothing_else(text):
    assert latent_sentiment(text) is None


def test_sequences_are_a_distribution():
    sequences = style_sequences()
    assert len(sequences) == len(set(sequences)) == len(STYLES) ** CLAUSES
    for kind in KINDS.values():
        assert math.fsum(kind.weights) == pytest.approx(1)
        assert math.fsum(sequence_probability(kind, styles) for styles in sequences) == pytest.approx(1)
    assert math.fsum(kind.share for kind in KINDS.values()) == pytest.approx(1)


def test_sequence_by_hand():
    regret = KINDS["regret"]
    assert sequence_probability(regret, ("fair", "fair", "rave")) == pytest.approx(0.005625)  # .15 x .15 x .25
    assert sequence_sentiment(regret, ("fair", "fair", "rave")) == pytest.approx(0.0)  # -1 + 1 + 1 - 1


def test_shares_labels_and_sentiments_are_those_stated():
    rows = generate_rows(20_000, 8)
    for verb, kind in KINDS.items():
        own = [row for row in rows if row.text.split()[1] == verb]
        sentiments = [latent_sentiment(row.text) or 0.0 for row in own]
        mean = kind.base + CLAUSES * sum(w * pay for w, pay in zip(kind.weights, kind.pays, strict=True))
        chance = sum(1 / (1 + math.exp(-value)) for value in sentiments) / len(own)
        assert len(own) / len(rows) == pytest.approx(kind.share, abs=0.015)  # 4 sd: sqrt(.35 x .65 / 20000) x 4
        assert sum(sentiments) / len(own) == pytest.approx(mean, abs=0.1)  # 4 sd: 1.9 / sqrt(6000) x 4
        assert sum(row.label for row in own) / len(own) == pytest.approx(chance, abs=0.026)  # 4 sd: .5 / sqrt(6000) x 4


def test_each_row_has_the_chance_of_its_label():
    for row in generate_rows(50, 8):
        assert row.chance == pytest.approx(1 / (1 + math.exp(-(latent_sentiment(row.text) or 0.0))))


def test_best_accuracy_by_hand():
    fine, poor = f"{PROMPT} . a fine plot , a fine plot , a fine plot .", f"{PROMPT} . a poor plot ."
    rows = [
        Row(fine, 1),
        Row(fine, 0),
        Row(poor, 0),
        Row(poor, 0),
    ]  # sentiments 2, 2, -1.3, -1.3: three signs are right
    assert best_accuracy(rows) == 0.75


def test_best_accuracy_is_what_the_labels_allow():
    rows = generate_rows(20_000, 9)
    expected = sum(1 / (1 + math.exp(-abs(latent_sentiment(row.text) or 0.0))) for row in rows) / len(rows)
    assert best_accuracy(rows) == pytest.approx(expected, abs=0.012)  # 4 sd: .4 / sqrt(20000) x 4


def test_best_accuracy_refuses_other_texts_and_no_rows():
    with pytest.raises(ValueError, match="not a review of this world: 'hello'"):
        best_accuracy([Row("hello", 1)])
    with pytest.raises(ValueError, match="no rows"):
        best_accuracy([])


def test_rows_survive_a_byte_level_tokenizer_with_one_token_a_word():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    texts = [row.text for row in generate_rows(2000, 6)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    )
    for text in texts[:200]:
        ids = tokenizer.encode(text).ids
        assert len(ids) == len(text.split())
        assert tokenizer.decode(ids[:8]) == " ".join(text.split()[:8])
        assert tokenizer.decode(ids) == text
