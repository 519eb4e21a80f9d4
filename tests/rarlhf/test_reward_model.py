"""Scores of any sequence classifier."""

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerBase

from rarlhf.classifier import train_tokenizer
from rarlhf.errors import UserError
from rarlhf.params import Params, RewardParams
from rarlhf.reward_model import RewardModel, output_index
from rarlhf.runtime import Machine

LABELS = ["toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate"]
TEXTS = ["bad", "a good film and a good plot", "good", "very bad film , very weak end of the plot", "a film"]


@pytest.fixture
def reward(params: Params) -> RewardParams:
    scratch = params.reward.scratch.model_copy(update={"vocab_size": 80})
    return params.reward.model_copy(
        update={"label": "toxic", "sign": 1, "max_length": 12, "batch_size": 2, "scratch": scratch}
    )


@pytest.fixture
def word_pieces(reward: RewardParams) -> PreTrainedTokenizerBase:
    return train_tokenizer(TEXTS, reward)


@pytest.fixture
def model(word_pieces: PreTrainedTokenizerBase) -> BertForSequenceClassification:
    """A BERT of six outputs, as the toxicity classifier has."""
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(
        vocab_size=len(word_pieces),
        id2label=dict(enumerate(LABELS)),
        label2id={name: index for index, name in enumerate(LABELS)},
        initializer_range=0.5,
        **shape,
    )
    return BertForSequenceClassification(config)


def test_an_output_is_named_by_name_or_index(model: BertForSequenceClassification) -> None:
    assert output_index(model, "threat") == 3
    assert output_index(model, 5) == 5
    for unknown in ("THREAT", 6, -1, "3"):
        with pytest.raises(UserError, match="0: toxic, 1: severe_toxic, .* 5: identity_hate") as caught:
            output_index(model, unknown)
        assert f"reward.label = {unknown!r}" in str(caught.value)


def test_a_score_is_the_raw_logit_of_its_output_times_the_sign(
    model: BertForSequenceClassification, word_pieces: PreTrainedTokenizerBase, reward: RewardParams, machine: Machine
) -> None:
    score = RewardModel(model, word_pieces, reward.model_copy(update={"label": "insult"}), machine)
    with torch.no_grad():
        expected = [model(**word_pieces(text, return_tensors="pt")).logits[0, 4] for text in TEXTS]
    torch.testing.assert_close(score(TEXTS), torch.stack(expected), atol=1e-5, rtol=1e-5)  # alone and padded
    assert len(set(score(TEXTS).tolist())) == len(TEXTS)
    opposite = RewardModel(model, word_pieces, reward.model_copy(update={"label": "insult", "sign": -1}), machine)
    assert torch.equal(opposite(TEXTS), -score(TEXTS))


def test_batching_changes_no_score_and_keeps_the_order(
    model: BertForSequenceClassification, word_pieces: PreTrainedTokenizerBase, reward: RewardParams, machine: Machine
) -> None:
    by_size = [
        RewardModel(model, word_pieces, reward.model_copy(update={"batch_size": size}), machine) for size in (1, 3, 9)
    ]
    alone, three, all_at_once = (score(TEXTS) for score in by_size)
    torch.testing.assert_close(three, alone, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(all_at_once, alone, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(by_size[1](TEXTS[::-1]), alone.flip(0), atol=1e-5, rtol=1e-5)


def test_what_is_too_long_is_cut_at_the_end(
    model: BertForSequenceClassification, word_pieces: PreTrainedTokenizerBase, reward: RewardParams, machine: Machine
) -> None:
    score = RewardModel(model, word_pieces, reward.model_copy(update={"max_length": 5}), machine)
    long, same, other = score(["a good film and a plot", "a good film very bad", "bad good film and a plot"])
    # three words and the two ends of BERT; the two stand in batches of other sizes, hence the rounding
    torch.testing.assert_close(long, same, atol=1e-5, rtol=1e-5)
    assert abs(long - other) > 1e-3


def test_a_score_that_is_not_finite_is_refused(
    model: BertForSequenceClassification, word_pieces: PreTrainedTokenizerBase, reward: RewardParams, machine: Machine
) -> None:
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight[word_pieces.convert_tokens_to_ids("weak")] = torch.nan
    score = RewardModel(model, word_pieces, reward, machine)
    assert torch.isfinite(score(TEXTS[:3])).all()
    with pytest.raises(UserError, match="gave nan for the text 'very bad film , very weak end of the plot'"):
        score(TEXTS)
