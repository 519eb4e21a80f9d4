"""A judge that compares answers: made-up ones whose verdicts are known, and a real one against a slow loop."""

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import GPT2LMHeadModel, PreTrainedTokenizerBase

from rarlhf.config.errors import UserError
from rarlhf.config.judging import PreferenceParams
from rarlhf.config.params import Params
from rarlhf.evaluation.generations import FloatArray, Tables
from rarlhf.evaluation.preference import ChatJudge, Pair, open_chat_judge, preferences, question, verdicts_of
from rarlhf.models.loading import save_model
from rarlhf.system.machine import Machine
from tests.rarlhf.evaluation.conftest import MakeTable

TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %} .{% endif %}"
SHORT = "{prompt} A {first} B {second}"


@pytest.fixture
def section(params: Params) -> PreferenceParams:
    return params.judge.preference.model_copy(update={"instruction": SHORT, "prompts": 3, "batch_size": 2})


@pytest.fixture
def tables(make_table: MakeTable) -> Tables:
    def answers(number: str) -> list[list[str]]:
        return [[f"{number}", "unread"] for _ in range(5)]

    scores = [[0.0, 0.0]] * 5
    made = {"sft": "5", "better": "7", "worse": "3", "same": "5"}
    return {name: {seed: make_table(scores, texts=answers(text)) for seed in (1, 2)} for name, text in made.items()}


def by_number(pairs: Sequence[Pair]) -> FloatArray:
    """Prefers the answer that is the higher number."""
    return np.array([float(pair.first) - float(pair.second) for pair in pairs])


def always_first(pairs: Sequence[Pair]) -> FloatArray:
    return np.ones(len(pairs))


def test_the_better_answers_win(tables: Tables, section: PreferenceParams) -> None:
    found = preferences(tables, by_number, section)
    assert found.against == "sft" and list(found.verdicts) == ["better", "worse", "same"]
    assert len(set(found.prompt_ids)) == 3 and sorted(found.prompt_ids) == list(found.prompt_ids)
    for method, verdict in {"better": 1.0, "worse": 0.0, "same": 0.5}.items():
        assert [values.tolist() for values in found.verdicts[method].values()] == [[verdict] * 3] * 2
    more = preferences(tables, by_number, section.model_copy(update={"prompts": 99}))
    assert list(more.prompt_ids) == [0, 1, 2, 3, 4]


def test_a_judge_that_prefers_a_place_only_ties(tables: Tables, section: PreferenceParams) -> None:
    for judge in (always_first, lambda pairs: -always_first(pairs), lambda pairs: np.zeros(len(pairs))):
        found = preferences(tables, judge, section)
        assert {value for by in found.verdicts.values() for row in by.values() for value in row} == {0.5}


def test_no_opinion_in_one_order_is_a_tie() -> None:
    pair = Pair("", "1", "2")
    for forward, backward, verdict in ((1, -1, 1.0), (-1, 1, 0.0), (1, 0, 0.5), (0, -1, 0.5), (0, 0, 0.5)):
        answers = np.array([forward, backward], dtype=np.float64)
        assert verdicts_of([pair], lambda pairs, answers=answers: answers) == {pair: verdict}


def test_equal_questions_are_asked_once_and_equal_answers_never() -> None:
    asked: list[Pair] = []

    def judge(pairs: Sequence[Pair]) -> FloatArray:
        asked.extend(pairs)
        return by_number(pairs)

    one, same = Pair("x", "1", "2"), Pair("x", "1", "1")
    assert verdicts_of([one, same, one], judge) == {one: 0.0, same: 0.5}
    assert asked == [one, Pair("x", "2", "1")]


def test_braces_in_a_text_stay() -> None:
    assert question(SHORT, Pair("{first}", "{second} {", "{prompt}")) == "{first} A {second} { B {prompt}"


@pytest.fixture
def chat(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    chat = deepcopy(tokenizer)
    chat.chat_template = TEMPLATE
    return chat


@torch.no_grad()
def slowly(lm: GPT2LMHeadModel, chat: PreTrainedTokenizerBase, pair: Pair) -> float:
    text = f"{pair.prompt} A {pair.first} B {pair.second} ."
    logits = lm(torch.tensor([chat(text, add_special_tokens=False)["input_ids"]])).logits[0, -1].log_softmax(0)
    first, second = (chat(letter, add_special_tokens=False)["input_ids"] for letter in ("A", "B"))
    assert len(first) == len(second) == 1  # the tokenizer has no token with a space before the letter
    return float(logits[first[0]] - logits[second[0]])


def test_the_letters_are_compared_by_their_probabilities(
    lm: GPT2LMHeadModel, chat: PreTrainedTokenizerBase, section: PreferenceParams, machine: Machine
) -> None:
    judge = ChatJudge(lm.train(), chat, section, machine)
    pairs = [Pair("we", "saw", "liked the film"), Pair("we saw the", "plot", "end"), Pair("", "we", "music .")]
    found = judge(pairs)
    lm.eval()
    assert found == pytest.approx([slowly(lm, chat, pair) for pair in pairs], abs=1e-5)
    assert len({round(float(value), 4) for value in found}) == 3
    assert judge(pairs[::-1])[::-1] == pytest.approx(found, abs=1e-6)


def test_judges_that_cannot_answer_are_refused(
    lm: GPT2LMHeadModel,
    tokenizer: PreTrainedTokenizerBase,
    chat: PreTrainedTokenizerBase,
    section: PreferenceParams,
    machine: Machine,
    tmp_path: Path,
) -> None:
    for name, used in (("plain", tokenizer), ("chat", chat)):
        save_model(lm, used, tmp_path / name)

    def opened(name: str) -> ChatJudge:
        return open_chat_judge(section.model_copy(update={"source": str(tmp_path / name)}), machine)

    assert len(opened("chat")([Pair("we", "saw", "liked")])) == 1
    with pytest.raises(UserError, match=r"judge\.preference\.source = '.*plain': its tokenizer has no chat template"):
        opened("plain")
    with pytest.raises(UserError, match=r"judge\.preference\.source = '.*nothing'"):
        (tmp_path / "nothing").mkdir()
        opened("nothing")
    with pytest.raises(UserError, match=r"a question has \d\d tokens, and the judge's context 32"):
        opened("chat")([Pair("we " * 40, "saw", "liked")])
    chat.chat_template = "{{ raise_exception('no user') }}"
    with pytest.raises(UserError, match=r"its chat template refuses a message \(no user\)"):
        ChatJudge(lm, chat, section, machine)([Pair("we", "saw", "liked")])


class Spelling:
    """A tokenizer that has no token for a capital letter."""

    def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        return {"input_ids": [1, 2]}


def test_a_judge_without_the_letters_is_refused(
    lm: GPT2LMHeadModel, section: PreferenceParams, machine: Machine
) -> None:
    with pytest.raises(UserError, match="its tokenizer has no token for the letter A"):
        ChatJudge(lm, Spelling(), section, machine)  # type: ignore[arg-type]
