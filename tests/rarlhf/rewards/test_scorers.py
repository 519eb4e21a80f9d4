"""Scores of any sequence classifier."""

import json
import sys
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerBase,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from rarlhf.commands.score import ScoreOptions, chosen_scorer, open_reward_model
from rarlhf.config.errors import UserError
from rarlhf.config.judging import OtherScorerParams, RewardParams
from rarlhf.config.params import Params
from rarlhf.messages.progress import SilentRecorder
from rarlhf.models.loading import load_classifier, save_model
from rarlhf.rewards.scorers import (
    RewardModel,
    WeightedSum,
    load_reward_model,
    load_scorer,
    output_index,
    scorer_hash,
)
from rarlhf.system.machine import Machine
from rarlhf.training.reward import make_scorer, train_tokenizer

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


def test_an_output_is_named_by_name_or_index(model: BertForSequenceClassification, reward: RewardParams) -> None:
    def index_of(label: str | int) -> int:
        return output_index(model, reward.model_copy(update={"label": label}))

    assert index_of("threat") == 3
    assert index_of(5) == 5
    for unknown in ("THREAT", 6, -1, "3"):
        with pytest.raises(UserError, match="0: toxic, 1: severe_toxic, .* 5: identity_hate") as caught:
            index_of(unknown)
        assert f"reward.label = {unknown!r}" in str(caught.value)


def test_outputs_are_not_rounded_where_the_rest_is(
    model: BertForSequenceClassification, word_pieces: PreTrainedTokenizerBase, reward: RewardParams, machine: Machine
) -> None:
    with torch.no_grad():
        model.classifier.bias += 64.0  # where bfloat16 has steps of half a logit
    exact = RewardModel(model, word_pieces, reward, machine)(TEXTS)
    rounded = RewardModel(model, word_pieces, reward, Machine(machine.device, torch.bfloat16))(TEXTS)
    torch.testing.assert_close(rounded, exact, atol=0.1, rtol=0)  # to the rounding of the layers below
    assert not torch.equal(rounded, rounded.bfloat16().float())


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


def outputs(model: BertForSequenceClassification, word_pieces: PreTrainedTokenizerBase) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return torch.cat([model(**word_pieces(text, return_tensors="pt")).logits for text in TEXTS])


@pytest.mark.parametrize("problem", [None, "single_label_classification", "multi_label_classification"])
def test_a_probability_is_softmax_or_sigmoid_by_the_kind_of_classifier(
    problem: str | None,
    model: BertForSequenceClassification,
    word_pieces: PreTrainedTokenizerBase,
    reward: RewardParams,
    machine: Machine,
) -> None:
    model.config.problem_type = problem
    params = reward.model_copy(update={"output": "probability", "label": 4, "sign": -1})
    logits = outputs(model, word_pieces)
    odds = logits.exp()
    one_of_six = odds[:, 4] / odds.sum(dim=1)
    expected = odds[:, 4] / (1 + odds[:, 4]) if problem == "multi_label_classification" else one_of_six
    torch.testing.assert_close(RewardModel(model, word_pieces, params, machine)(TEXTS), -expected, atol=1e-5, rtol=1e-5)


def test_the_probability_of_one_output_is_its_sigmoid_and_a_regression_has_none(
    word_pieces: PreTrainedTokenizerBase, reward: RewardParams, machine: Machine
) -> None:
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = BertForSequenceClassification(BertConfig(vocab_size=len(word_pieces), num_labels=1, **shape)).eval()
    params = reward.model_copy(update={"output": "probability", "label": 0})
    scores = RewardModel(model, word_pieces, params, machine)(TEXTS)
    odds = outputs(model, word_pieces)[:, 0].exp()
    torch.testing.assert_close(scores, odds / (1 + odds), atol=1e-5, rtol=1e-5)
    model.config.problem_type = "regression"
    with pytest.raises(UserError, match="reward.output = 'probability': the reward model is a regression"):
        RewardModel(model, word_pieces, params, machine)


@pytest.fixture
def given(
    model: BertForSequenceClassification,
    word_pieces: PreTrainedTokenizerBase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> str:
    """A folder of the classifier; beside it, in the current folder, a user's function."""
    save_model(model, word_pieces, tmp_path / "given")
    (tmp_path / "own_length.py").write_text("def score(texts):\n    return [len(text) / 10 for text in texts]\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "own_length", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    return str(tmp_path / "given")


def test_a_function_alone_is_a_reward_model(given: str, reward: RewardParams, machine: Machine) -> None:
    params = reward.model_copy(update={"source": "python:own_length:score", "sign": -1, "watch": ["code"]})
    assert make_scorer([], Path("made"), params, machine, SilentRecorder()) == []
    score = load_reward_model(Path("made"), params, machine)(TEXTS)
    assert score.dtype == torch.float32
    torch.testing.assert_close(score, torch.tensor([-len(text) / 10 for text in TEXTS]))
    (noted,) = json.loads(Path("made/scorer.json").read_text())
    assert (noted["source"], noted["weight"], len(noted["sha256"])) == ("python:own_length:score", -1.0, 64)


def test_several_scorers_are_a_weighted_sum(given: str, reward: RewardParams, machine: Machine) -> None:
    others = [
        {"source": "python:own_length:score", "weight": 0.5},
        {"source": given, "weight": -2.0, "label": "threat", "output": "probability", "max_length": 8},
    ]
    first = reward.model_copy(update={"source": given, "label": "insult", "sign": -1})
    params = first.model_copy(update={"others": [OtherScorerParams(**other) for other in others]})
    make_scorer([], Path("made"), params, machine, SilentRecorder())
    total = load_reward_model(Path("made"), params, machine)(TEXTS)
    threat = first.model_copy(update={"label": "threat", "output": "probability", "max_length": 8, "sign": 1})
    alone = [load_reward_model(Path(given), section, machine)(TEXTS) for section in (first, threat)]
    length = torch.tensor([len(text) / 10 for text in TEXTS])
    torch.testing.assert_close(total, alone[0] + 0.5 * length - 2.0 * alone[1])
    assert [part["weight"] for part in json.loads(Path("made/scorer.json").read_text())] == [-1.0, 0.5, -2.0]
    AutoModelForSequenceClassification.from_pretrained("made")  # the first, as a single one would lie there


def test_one_classifier_alone_leaves_no_note(given: str, reward: RewardParams, machine: Machine) -> None:
    make_scorer([], Path("made"), reward.model_copy(update={"source": given}), machine, SilentRecorder())
    assert {path.name for path in Path("made").iterdir()} == {path.name for path in Path(given).iterdir()}


def test_an_error_says_which_of_the_others_it_is_about(given: str, reward: RewardParams, machine: Machine) -> None:
    for change, message in (
        ({"label": "rude"}, "reward.label = 'rude': the reward model has no such output"),
        ({"label": 6}, "reward.label = 6: the reward model has no such output; it has 0: toxic"),
        ({"source": "nowhere"}, "reward.source = 'nowhere': neither a local folder nor"),
    ):
        other = OtherScorerParams(
            **({"source": given, "weight": 1.0, "label": 0, "output": "logit", "max_length": 8} | change)
        )
        params = reward.model_copy(update={"source": given, "others": [other]})
        with pytest.raises(UserError) as caught:
            make_scorer([], Path("made"), params, machine, SilentRecorder())
        assert str(caught.value).startswith(f"reward.others, {other.source}: {message}")


def test_a_score_beyond_float32_is_refused(
    given: str, reward: RewardParams, machine: Machine, model: BertForSequenceClassification
) -> None:
    """Infinite scores hide behind a sigmoid, in a function's large numbers, and in a sum."""
    Path("own_huge.py").write_text(
        "def score(texts):\n    return [3e38 if 'weak' in text else 1e39 for text in texts]\n"
    )
    huge = reward.model_copy(update={"source": "python:own_huge:score"})
    with pytest.raises(UserError, match="python:own_huge:score gave inf for the text 'bad'"):
        load_scorer(Path("made"), huge, machine)(TEXTS)
    one = load_scorer(Path("made"), huge, machine)
    with pytest.raises(
        UserError, match="the sum of reward.source and reward.others gave inf for the text 'a weak one'"
    ):
        WeightedSum(one, [(2.0, one)])(["a weak one"])
    model.config.problem_type = "multi_label_classification"
    with torch.no_grad():
        model.classifier.bias.fill_(torch.inf)
    probability = reward.model_copy(update={"output": "probability"})
    with pytest.raises(UserError, match="the reward model gave inf for the text 'bad'"):
        RewardModel(model, load_classifier(given)[1], probability, machine)(TEXTS)


def test_no_more_tokens_are_read_than_there_are_positions(
    model: BertForSequenceClassification,
    word_pieces: PreTrainedTokenizerBase,
    reward: RewardParams,
    machine: Machine,
    tmp_path: Path,
) -> None:
    """RoBERTa's positions begin behind its padding's number, so that of 40 two are never read."""
    longer = reward.model_copy(update={"max_length": 513})
    with pytest.raises(UserError, match="reward.max_length = 513: the reward model has 512 positions; lower it to 512"):
        RewardModel(model, word_pieces, longer, machine)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = RobertaConfig(
        vocab_size=len(word_pieces), max_position_embeddings=40, pad_token_id=1, num_labels=1, **shape
    )
    save_model(RobertaForSequenceClassification(config), word_pieces, tmp_path)
    place, params = chosen_scorer(tmp_path, ScoreOptions(None, None, None, None))
    assert params.max_length == 38
    score = open_reward_model(place, params, machine)
    assert score(["film " * 1000]).isfinite().all()
    with pytest.raises(UserError, match="reward.max_length = 39: the reward model has 38 positions"):
        open_reward_model(place, params.model_copy(update={"max_length": 39}), machine)


@pytest.mark.slow
def test_a_scorer_is_known_by_its_files_or_its_code(reward: RewardParams, tmp_path: Path) -> None:
    (tmp_path / "one").write_text("a")
    first = scorer_hash(tmp_path, reward)
    assert scorer_hash(tmp_path, reward) == first
    (tmp_path / "one").write_text("b")
    second = scorer_hash(tmp_path, reward)
    (tmp_path / "one").rename(tmp_path / "two")
    assert len({first, second, scorer_hash(tmp_path, reward)}) == 3
    vader, profanity = (
        scorer_hash(tmp_path, reward.model_copy(update={"source": f"python:rarlhf.rewards.{name}"}))
        for name in ("vader:compound", "profanity:probability")
    )
    assert vader != profanity
