import numpy as np
import pytest

from rarlhf.evaluation.samples import TailSample, tail_samples, visible
from tests.rarlhf.evaluation.texts import HOSTILE


@pytest.mark.parametrize(("text", "shown"), HOSTILE.items())
def test_steering_characters_are_shown_as_escapes(text: str, shown: str) -> None:
    assert visible(text) == shown


def texts_of(samples: list[TailSample]) -> list[str]:
    return [sample.prompt for sample in samples]


def test_samples_are_drawn_from_the_tail_by_the_seed(tables, params) -> None:
    tail = np.arange(40) < 20
    first, same, other = (tail_samples(tables, tail, 5, seed) for seed in (1, 1, 2))
    assert first == same
    assert texts_of(first) != texts_of(other)
    assert all(int(text.removeprefix("prompt ")) < 20 for text in texts_of(first))
    assert [answer.method for answer in first[0].answers] == list(tables)
    assert len(tail_samples(tables, tail, 99, 1)) == 20
    assert tail_samples(tables, tail, 0, 1) == []


def test_sample_shows_the_first_seeds_first_continuation(tables) -> None:
    sample = tail_samples(tables, np.arange(40) == 7, 1, 1)[0]
    table = tables["rlhf"][1]
    assert sample.prompt == "prompt 7"
    assert sample.answers[2].text == table.continuations[7][0]
    assert sample.answers[2].score == f"{table.scores[7, 0]:.2f}"
