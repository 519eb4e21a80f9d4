"""Trainings of `methods.tuned`: which texts are learned."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from rarlhf.config.baselines import SupervisedParams
from rarlhf.config.errors import UserError
from rarlhf.config.fields import Section
from rarlhf.config.params import Params
from rarlhf.data.rows import Row
from rarlhf.training.tuned import chosen_rows, train_tuned

LABELLED = [Row(text, label) for text, label in (("bbbb", 1), ("a", 0), ("ccc", 1), ("dd", 0), ("eee", 0))]
BARE = [Row(row.text, None) for row in LABELLED]


def length(texts: Sequence[str]) -> Tensor:
    return torch.tensor([float(len(text)) for text in texts])


def texts(rows: Sequence[Row], params: Params, which: str, quantile: float = 0.5) -> list[str]:
    settings = SupervisedParams(texts=which, quantile=quantile)  # type: ignore[arg-type]
    return [row.text for row in chosen_rows(rows, settings, length, params.prompts)]


def test_rows_above_and_below_a_quantile_of_their_scores(params: Params) -> None:
    # Lengths 4 1 3 2 3 in order: a dd ccc eee bbbb. Of two equal scores the first is the lower one.
    for rows in (LABELLED, BARE):
        assert texts(rows, params, "above", 0.5) == ["bbbb", "ccc", "eee"]  # floor(2.5) = 2 are below
        assert texts(rows, params, "below", 0.5) == ["a", "dd"]
        assert texts(rows, params, "above", 0.6) == ["bbbb", "eee"]
        assert texts(rows, params, "below", 0.6) == ["a", "ccc", "dd"]  # in their own order
        assert texts(rows, params, "above", 0.0) == [row.text for row in rows]


def test_a_quantile_is_the_decimal_that_was_written(params: Params) -> None:
    rows = [Row("x" * index, None) for index in range(1, 101)]
    assert len(texts(rows, params, "below", 0.29)) == 29  # 0.29 * 100 is 28.999... as a float


def test_rows_of_a_class_by_label(params: Params) -> None:
    assert texts(LABELLED, params, "wanted") == ["bbbb", "ccc"]
    assert texts(LABELLED, params, "unwanted") == ["a", "dd", "eee"]


def test_all_rows(params: Params) -> None:
    for rows in (LABELLED, BARE):
        assert texts(rows, params, "all") == [row.text for row in rows]


def test_rows_of_a_class_without_labels(params: Params) -> None:
    half = params.model_copy(update={"prompts": params.prompts.model_copy(update={"wanted_quantile": 0.4})})
    assert texts(BARE, half, "wanted") == ["bbbb", "ccc", "eee"]  # floor(2) are left out
    assert texts(BARE, half, "unwanted") == ["a", "dd"]


def test_rows_of_equal_text_are_told_apart(params: Params) -> None:
    rows = [Row("same", 1), Row("same", 0), Row("same", 0)]
    assert len(texts(rows, params, "wanted")) == 1
    assert len(texts(rows, params, "unwanted")) == 2


def test_nothing_to_learn_is_one_line(params: Params) -> None:
    message = r"tuning.supervised.texts = 'below', quantile = 0.1: no training row is left"
    with pytest.raises(UserError, match=message):
        texts(LABELLED, params, "below", 0.1)
    with pytest.raises(UserError, match="texts = 'unwanted'"):
        texts(LABELLED[:1], params, "unwanted")


def test_settings_of_no_training_are_refused(params: Params) -> None:
    with pytest.raises(ValueError, match="no training has settings of the kind Section"):
        train_tuned(Section(), *[None] * 6)  # type: ignore[arg-type]
