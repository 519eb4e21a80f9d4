"""The classifier on worlds where its area under the curve is known, and against scikit-learn."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from transformers import GPT2LMHeadModel, PreTrainedTokenizerBase

from rarlhf.config.errors import UserError
from rarlhf.config.params import Params
from rarlhf.config.utility import ClassificationParams
from rarlhf.data.rows import Row
from rarlhf.system.machine import Machine
from rarlhf.utility.classifier import choose_rows, classification_auc, logistic_regression

WORDS = ["film", "music", "plot", "end", "weak", "old", "we", "saw"]


@pytest.fixture
def section(params: Params) -> ClassificationParams:
    return params.utility.classification.model_copy(update={"rows": 200, "test_rows": 400, "tokens": 16})


def rows(count: int, separable: bool, seed: int) -> list[Row]:
    """Random words; a wanted text begins with `liked`, or its label is chance."""
    random = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        label, words = int(random.integers(2)), list(random.choice(WORDS, 4))
        words[:2] = ["liked" if label and separable else "regret"] * 2
        found.append(Row(" ".join(words), label))
    return found


@pytest.mark.parametrize(("separable", "low", "high"), [(True, 1.0, 1.0), (False, 0.4, 0.6)])
def test_the_area_under_the_curve_of_a_known_world(
    separable: bool,
    low: float,
    high: float,
    lm: GPT2LMHeadModel,
    tokenizer: PreTrainedTokenizerBase,
    section: ClassificationParams,
    machine: Machine,
) -> None:
    chosen = choose_rows(rows(300, separable, 1), rows(500, separable, 2), section)
    assert [len(split.texts) for split in chosen] == [200, 400]
    found = classification_auc(lm.train(), tokenizer, chosen, section, machine)
    assert low <= found <= high
    assert found == classification_auc(lm, tokenizer, chosen, section, machine)
    turned = chosen._replace(test=chosen.test._replace(wanted=~chosen.test.wanted))
    assert classification_auc(lm, tokenizer, turned, section, machine) == pytest.approx(1 - found)


def test_texts_are_cut(
    lm: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerBase, section: ClassificationParams, machine: Machine
) -> None:
    def texts(count: int, seed: int) -> list[Row]:
        return [Row("we saw the film " * 20 + row.text, row.label) for row in rows(count, True, seed)]

    chosen = choose_rows(texts(60, 1), texts(60, 2), section)
    hidden = section.model_copy(update={"tokens": 4096})  # the context of 32 comes before the words that differ
    assert classification_auc(lm, tokenizer, chosen, hidden, machine) == 0.5
    assert classification_auc(lm, tokenizer, chosen, section, machine) == 0.5


def test_the_coefficients_are_those_of_another_implementation() -> None:
    random = np.random.default_rng(0)
    features, penalty = random.normal(size=(80, 5)), 0.01
    wanted = features @ np.array([1.0, -2.0, 0.5, 0.0, 0.0]) + random.logistic(size=80) + 0.7 > 0
    peer = LogisticRegression(C=1 / (penalty * len(wanted)), tol=1e-10, max_iter=10_000).fit(features, wanted)
    assert logistic_regression(features, wanted, penalty) == pytest.approx(peer.coef_[0], abs=1e-4)


def test_rows_are_labelled_and_of_both_classes(section: ClassificationParams) -> None:
    good = rows(40, True, 1)
    unlabelled = [Row(row.text) for row in good]
    alike = [Row(row.text, 1) for row in good]
    chosen = choose_rows([*unlabelled, *good], good, section)
    assert sorted(chosen.train.texts) == sorted(row.text for row in good)
    with pytest.raises(UserError, match=r"utility\.classification\.rows = 200: .* training rows .* 40 of them are of"):
        choose_rows(alike, good, section)
    with pytest.raises(UserError, match=r"utility\.classification\.test_rows = 400: .* test rows .* there is none"):
        choose_rows(good, unlabelled, section)
