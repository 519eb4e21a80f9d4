"""Scorers of ordinary packages, through the door that any function takes."""

import sys

import pytest

from rarlhf.config.errors import UserError
from rarlhf.config.params import Params
from rarlhf.rewards.functions import load_function
from rarlhf.rewards.scorers import FunctionScore
from tests.rarlhf.small import changed

VADER, PROFANITY = "python:rarlhf.rewards.vader:compound", "python:rarlhf.rewards.profanity:probability"


def scores(source: str, sign: int, texts: list[str], params: Params) -> list[float]:
    values = {"judge.second_scorer.source": source, "judge.second_scorer.sign": sign}
    return FunctionScore(changed(params, values).judge.second_scorer)(texts).tolist()


def test_vader_ranks_sentiment(params: Params) -> None:
    good, plain, bad = scores(VADER, 1, ["a wonderful film", "a film", "a horrible film"], params)
    assert -1 <= bad < plain < good <= 1
    assert plain == 0.0


def test_profanity_is_a_probability(params: Params) -> None:
    clean, offensive = scores(PROFANITY, -1, ["have a nice day", "you are a stupid bitch"], params)
    assert -1 <= offensive < -0.5 < clean <= 0


@pytest.mark.parametrize(
    ("source", "module", "package"),
    [(VADER, "vaderSentiment.vaderSentiment", "vaderSentiment"), (PROFANITY, "profanity_check", "alt-profanity-check")],
)
def test_a_package_that_is_missing_is_named(
    source: str, module: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, source.removeprefix("python:").partition(":")[0], raising=False)
    with pytest.raises(UserError, match=rf"{package} is not installed: pip install -e '\.\[judges\]'"):
        load_function(source)
