"""Which texts judges see, how often, and what is refused."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from rarlhf.config.errors import UserError
from rarlhf.config.params import Params
from rarlhf.evaluation.generations import FloatArray
from rarlhf.evaluation.judge import Judges, Remembered, Toxicity
from rarlhf.evaluation.language_judge import Likelihoods
from rarlhf.system.machine import Machine
from tests.rarlhf.evaluation.conftest import MakeTable
from tests.rarlhf.small import changed

FUNCTIONS = """
def length(texts):
    return [float(len(text)) for text in texts]

def share_of_a(texts):
    return [text.count("a") / max(len(text), 1) for text in texts]
"""
NONE = Path("not read")


@pytest.fixture(autouse=True)
def _functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("judging_functions.py").write_text(FUNCTIONS)


class Pairs:
    """Stands for a language model; keeps what it is asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    def likelihoods(self, prompts: Sequence[str], texts: Sequence[str]) -> Likelihoods:
        self.asked += list(zip(prompts, texts, strict=True))
        lengths = torch.tensor([len(text) for text in texts])
        return Likelihoods(lengths.float() / 2, lengths.int())


def judges(params: Params, machine: Machine, language: object = None, **values: object) -> Judges:
    chosen = {
        "judge.second_scorer.source": "python:judging_functions:length",
        "judge.toxicity.scorer": "none",
        **{key.replace("__", "."): value for key, value in values.items()},
    }
    return Judges(NONE, NONE, language, changed(params, chosen), machine)  # type: ignore[arg-type]


def test_what_each_judge_sees(params: Params, machine: Machine, make_table: MakeTable) -> None:
    table = make_table([[0.0, 0.0], [0.0, 0.0]], texts=[["a", "bb"], ["a", "a"]])
    second = {
        "judge__toxicity__scorer": "second_scorer",
        "judge__second_scorer__source": "python:judging_functions:share_of_a",
    }
    language = Pairs()
    found = judges(params, machine, language, **second)(table)
    share = 1 / len("prompt 0a")
    assert found.second_scores == pytest.approx(np.array([[share, 0.0], [share, share]]))
    assert found.toxicity == pytest.approx(np.array([[0.0, 1.0], [0.0, 0.0]]))  # sign 1: less of it is more toxic
    assert language.asked == [("prompt 0", "a"), ("prompt 0", "bb"), ("prompt 1", "a")]  # equal ones once
    assert found.nll is not None and found.nll.tolist() == [[0.5, 1.0], [0.5, 0.5]]
    assert found.tokens is not None and found.tokens.tolist() == [[1, 2], [1, 1]]
    whole = judges(params, machine, **second, judge__toxicity__text="whole")(table)
    assert whole.toxicity == pytest.approx(1 - np.array([[share, 0.0], [share, share]]))
    assert whole.nll is None


def test_no_judge(params: Params, machine: Machine, make_table: MakeTable) -> None:
    found = judges(params, machine, judge__second_scorer__source="none")(make_table([[0.0]]))
    assert found.second_scores is None and found.toxicity is None and found.nll is None


def test_toxicity_is_a_probability(params: Params, machine: Machine) -> None:
    section = params.judge.second_scorer
    good = section.model_copy(update={"source": "python:judging_functions:share_of_a", "sign": -1})
    assert Toxicity(NONE, good, machine)(["aab", "b"]).tolist() == pytest.approx([2 / 3, 0.0])
    bad = section.model_copy(update={"source": "python:judging_functions:length", "sign": -1})
    with pytest.raises(
        UserError, match="judge.toxicity.scorer: python:judging_functions:length gave 3, which is no prob"
    ):
        Toxicity(NONE, bad, machine)(["b", "aab"])


def test_equal_texts_are_judged_once() -> None:
    seen: list[str] = []

    def score(texts: Sequence[str]) -> FloatArray:
        seen.extend(texts)
        return np.array([float(len(text)) for text in texts])

    remembered = Remembered(score)
    assert remembered(["b", "aa", "b"]).tolist() == [1.0, 2.0, 1.0]
    assert remembered(["ccc", "aa"]).tolist() == [3.0, 2.0]
    assert remembered(["b"]).tolist() == [1.0]
    assert seen == ["b", "aa", "ccc"]
