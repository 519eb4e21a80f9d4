"""The classifier made from nothing: targets, training, and how its quality is measured."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rarlhf.config.errors import UserError
from rarlhf.config.judging import RewardParams
from rarlhf.config.params import Params
from rarlhf.data.rows import Row
from rarlhf.data.world import best_accuracy, generate_rows, latent_sentiment
from rarlhf.messages.progress import SilentRecorder
from rarlhf.rewards.scorers import load_reward_model
from rarlhf.system.machine import Machine
from rarlhf.training.reward import (
    LabelledTexts,
    Padded,
    cut_some,
    make_scorer,
    new_classifier,
    score_quality,
    train_tokenizer,
    world_quality,
)

ROWS = [Row("Good good film", 1), Row("bad film, very very bad indeed", 0)] * 30


@pytest.fixture
def reward(params: Params) -> RewardParams:
    """The section of the tiny preset with a smaller classifier."""
    scratch = {"vocab_size": 60, "layers": 1, "width": 16, "epochs": 4, "batch_size": 8, "lr": 0.01}
    section = params.reward.scratch.model_copy(update=scratch)
    return params.reward.model_copy(update={"scratch": section, "max_length": 16})


@pytest.fixture
def word_pieces(reward: RewardParams) -> PreTrainedTokenizerBase:
    return train_tokenizer([row.text for row in ROWS], reward)


def test_quality_counts_signs_and_pairs(params: Params) -> None:
    def score(texts: Sequence[str]) -> Tensor:
        return torch.tensor([float(text) for text in texts])

    rows = [Row("1", 1), Row("-1", 1), Row("-2", 0), Row("3", 0)]
    # right by sign: the first and the third; pairs: 1 > -2 and -1 > -2, but 1 < 3 and -1 < 3
    assert score_quality(score, rows, params.reward) == {"accuracy": 0.5, "auc": 0.5, "rows": 4}
    # Above -.5, less than one half of the unwanted class: 1 and 3. Right are 1, which is wanted, and -2, which is not.
    toxic = params.reward.model_copy(update={"output": "probability", "sign": -1})
    assert score_quality(score, [*rows, Row("-0.2", 1)], toxic)["accuracy"] == 0.6
    bare = [Row(row.text) for row in rows]  # mean .25; squares .5625, 1.5625, 5.0625, 7.5625 with mean 3.6875
    spread = {"score_mean": 0.25, "score_std": pytest.approx(3.6875**0.5), "rows": 4}
    assert score_quality(score, bare, params.reward) == spread
    own = params.reward.model_copy(update={"source": "python:own:score"})
    assert score_quality(score, rows, own) == {"auc": 0.5} | spread


def test_targets_follow_the_sign(reward: RewardParams, word_pieces: PreTrainedTokenizerBase) -> None:
    for sign, targets in ((1, [1.0, 0.0]), (-1, [0.0, 1.0])):
        texts = LabelledTexts(ROWS[:2], word_pieces, reward.model_copy(update={"sign": sign}))
        assert [texts[i]["labels"] for i in range(2)] == [[target] for target in targets]
        assert [texts[i]["length"] for i in range(2)] == [len(texts[i]["input_ids"]) for i in range(2)]
    short = LabelledTexts(ROWS[:2], word_pieces, reward.model_copy(update={"max_length": 4}))
    assert [len(short[i]["input_ids"]) for i in range(2)] == [4, 4]


def test_targets_are_chances_where_the_source_knows_them(
    reward: RewardParams, word_pieces: PreTrainedTokenizerBase
) -> None:
    rows = [
        Row("good film", 1, chance=0.875),
        Row("bad film", 1, chance=0.25),
        Row("good", 0, chance=0.0),
        Row("bad", 1),
    ]
    for sign, targets in ((1, [0.875, 0.25, 0.0, 1.0]), (-1, [0.125, 0.75, 1.0, 0.0])):
        texts = LabelledTexts(rows, word_pieces, reward.model_copy(update={"sign": sign}))
        assert [texts[i]["labels"] for i in range(4)] == [[target] for target in targets]


def test_a_classifier_of_chances_scores_their_log_odds(reward: RewardParams, machine: Machine, tmp_path: Path) -> None:
    """All labels are 1; only the chances tell the texts apart, and beyond which one is wanted, by how much."""
    rows = [Row("good film", 1, chance=0.9), Row("bad film", 1, chance=0.3)] * 60
    scratch = reward.scratch.model_copy(update={"cut_share": 0.0, "weight_decay": 0.0})
    section = reward.model_copy(update={"scratch": scratch})
    make_scorer(rows, tmp_path, section, machine, SilentRecorder())
    scores = load_reward_model(tmp_path, section, machine)([row.text for row in rows[:2]])
    torch.testing.assert_close(scores, torch.tensor([0.9, 0.3]).logit(), atol=0.3, rtol=0)


def test_the_share_that_is_asked_for_is_cut(reward: RewardParams, word_pieces: PreTrainedTokenizerBase) -> None:
    lengths = []
    for share in (0.0, 1.0):
        scratch = reward.scratch.model_copy(update={"cut_share": share})
        texts = LabelledTexts(ROWS, word_pieces, reward.model_copy(update={"scratch": scratch}))
        lengths.append([texts[i]["length"] for i in range(len(texts))])
    whole, cut = lengths
    assert set(whole) == {whole[0], whole[1]}
    assert len(set(cut)) > 2
    assert all(one <= other for one, other in zip(cut, whole, strict=True))


def test_equal_texts_give_equal_tokenizers(reward: RewardParams) -> None:
    """The library's trainer numbers letters by a hash table that is another one each time."""
    texts = [row.text for row in generate_rows(200, "tokenizers")]
    made = {train_tokenizer(texts, reward).backend_tokenizer.to_str() for _ in range(4)}
    assert len(made) == 1


def test_the_rarest_letters_beyond_the_alphabet_are_unknown(
    reward: RewardParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rarlhf.training.reward.ALPHABET", 3)
    tokenizer = train_tokenizer(["aaaa bbb bbb cc", "ab ab ab abd"], reward)
    assert {"##a", "##b", "##c"} <= set(tokenizer.get_vocab())
    assert "##d" not in tokenizer.get_vocab()
    assert tokenizer.tokenize("abd") == ["[UNK]"]


def test_the_tokenizer_is_uncased_with_bert_ends(word_pieces: PreTrainedTokenizerBase) -> None:
    assert word_pieces.decode(word_pieces("GOOD film")["input_ids"]) == "[CLS] good film [SEP]"


def test_a_batch_is_padded_without_the_length(reward: RewardParams, word_pieces: PreTrainedTokenizerBase) -> None:
    texts = LabelledTexts(ROWS[:2], word_pieces, reward)
    batch = Padded(word_pieces)([texts[0], texts[1]])
    assert set(batch) == {"input_ids", "attention_mask", "labels"}
    assert batch["attention_mask"].sum(dim=1).tolist() == [texts[0]["length"], texts[1]["length"]]
    assert batch["labels"].tolist() == [[1.0], [0.0]]


def test_the_one_output_is_a_log_odds(reward: RewardParams, word_pieces: PreTrainedTokenizerBase) -> None:
    model = new_classifier(word_pieces, reward.model_copy(update={"label": "GOOD"})).eval()
    assert model.config.id2label == {0: "GOOD"}
    ids = word_pieces("good film", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        output = model(ids, labels=torch.tensor([[1.0]]))
    # -log sigmoid(logit), the cross-entropy of one output, is log(1 + exp(-logit))
    assert output.logits.shape == (1, 1)
    torch.testing.assert_close(output.loss, torch.log1p(torch.exp(-output.logits[0, 0])))


@pytest.mark.parametrize("sign", [1, -1])
def test_a_trained_classifier_scores_the_wanted_class_higher(
    sign: int, reward: RewardParams, machine: Machine, tmp_path: Path
) -> None:
    section = reward.model_copy(update={"sign": sign, "label": "toxic" if sign == -1 else "POSITIVE"})
    curve = make_scorer(ROWS, tmp_path, section, machine, SilentRecorder())
    assert curve[-1]["loss"] < 0.8 * curve[0]["loss"]
    model = load_reward_model(tmp_path, section, machine)
    assert score_quality(model, ROWS[:2], section) == {"accuracy": 1.0, "auc": 1.0, "rows": 2}


def test_a_given_classifier_is_taken_as_it_is_if_it_has_the_label(
    reward: RewardParams, word_pieces: PreTrainedTokenizerBase, machine: Machine, tmp_path: Path
) -> None:
    model = new_classifier(word_pieces, reward)
    model.save_pretrained(tmp_path / "given")
    word_pieces.save_pretrained(tmp_path / "given")
    section = reward.model_copy(update={"source": str(tmp_path / "given")})
    assert make_scorer([], tmp_path / "reward", section, machine, SilentRecorder()) == []
    taken = load_reward_model(tmp_path / "reward", section, machine)
    assert torch.equal(taken.model.classifier.weight, model.classifier.weight)
    with pytest.raises(UserError, match="it has 0: POSITIVE"):
        make_scorer([], tmp_path / "x", section.model_copy(update={"label": "toxic"}), machine, SilentRecorder())
    assert not (tmp_path / "x").exists()


def test_the_worlds_oracle_ranks_every_kind_of_prompt() -> None:
    rows = generate_rows(400, seed=1)

    def oracle(texts: Sequence[str]) -> Tensor:
        return torch.tensor([latent_sentiment(text) for text in texts])

    quality = world_quality(oracle, rows)
    assert quality.pop("best_accuracy") == best_accuracy(rows)
    assert set(quality) == {f"{name}_{kind}" for name in ("rank", "top_slope") for kind in ("liked", "saw", "regret")}
    assert list(quality.values()) == pytest.approx([1.0] * 6, abs=1e-3)  # float32 scores part some that are equal
    reverse = world_quality(lambda texts: -oracle(texts), rows)
    assert [reverse[name] for name in quality] == pytest.approx([-1.0] * 6, abs=1e-3)


def test_a_score_that_saturates_has_a_small_slope_at_the_top() -> None:
    def saturated(texts: Sequence[str]) -> Tensor:
        return torch.tensor([latent_sentiment(text) for text in texts]).clamp(max=1.0)

    quality = world_quality(saturated, generate_rows(400, seed=3))
    assert quality["top_slope_liked"] == pytest.approx(0.0, abs=1e-6)  # all of the best have more than 1
    assert 0 < quality["top_slope_regret"] < 1  # only few have


def test_about_the_share_of_texts_is_cut_at_a_word_and_the_rest_left_alone() -> None:
    texts = [f"we  saw film {i} and it was fine ." for i in range(400)]
    cut = cut_some(texts, 0.25, seed=1)
    assert cut == cut_some(texts, 0.25, seed=1) != cut_some(texts, 0.25, seed=2)
    shorter = [(whole, part) for whole, part in zip(texts, cut, strict=True) if whole != part]
    assert 60 < len(shorter) < 120  # of 400, an eighth fewer than a quarter: one cut in nine is at the end
    assert all(whole.startswith(part) and whole[len(part)] == " " and not part.endswith(" ") for whole, part in shorter)
    assert len({len(part.split()) for _, part in shorter}) == 8  # after every word but the last
    assert cut_some(texts, 0.0, seed=1) == texts
    assert cut_some(["", " "], 0.9, seed=1) == ["", " "]
