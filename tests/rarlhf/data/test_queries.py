"""Prompts as token ids, bare and in a chat template."""

from copy import deepcopy

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerBase

from rarlhf.config.errors import UserError
from rarlhf.config.params import Params
from rarlhf.data.queries import TextQuery, answer_to, chat_text, continuation, scored_text, text_query

TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }};{% endfor %}{% if add_generation_prompt %}>{% endif %}"
)
USER = [{"role": "user", "content": "we saw"}]


@pytest.fixture
def chatty(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    copy = deepcopy(tokenizer)
    copy.chat_template = TEMPLATE
    return copy


def query(tokenizer: PreTrainedTokenizerBase, params: Params, text: str, tokens: int, chat: bool) -> TextQuery:
    section = params.prompts.model_copy(update={"tokens": tokens, "chat_template": chat})
    return text_query(text, tokenizer, section)


def test_a_bare_query_is_the_first_tokens(tokenizer: PreTrainedTokenizerBase, params: Params) -> None:
    cut = query(tokenizer, params, "we saw the film", 3, chat=False)
    assert cut.input_ids == tokenizer("we saw the film")["input_ids"][:3]
    assert "we saw the film".startswith(cut.prompt)


def test_a_query_does_not_end_where_its_tokenizer_ends_every_text(
    tokenizer: PreTrainedTokenizerBase, params: Params
) -> None:
    ending, end = deepcopy(tokenizer), (tokenizer.eos_token, tokenizer.eos_token_id)
    words = tokenizer("we saw")["input_ids"]
    ending.backend_tokenizer.post_processor = TemplateProcessing(f"{end[0]} $A {end[0]}", special_tokens=[end])
    assert ending("we saw")["input_ids"] == [end[1], *words, end[1]]
    assert query(ending, params, "we saw", 60, chat=False) == TextQuery("we saw", [end[1], *words])
    ending.backend_tokenizer.post_processor = TemplateProcessing(f"$A {end[0]}", special_tokens=[end])
    assert query(ending, params, "", 60, chat=False).input_ids == [end[1]]  # a query is never empty


def test_in_a_chat_the_message_is_cut_and_the_template_whole(chatty: PreTrainedTokenizerBase, params: Params) -> None:
    longest = query(chatty, params, "we saw the film", 60, chat=True)
    assert longest.prompt == "we saw the film"
    assert chatty.decode(longest.input_ids) == "<user>we saw the film;>"
    tokens = len(longest.input_ids) - 1
    cut = query(chatty, params, "we saw the film", tokens, chat=True)
    assert len(cut.input_ids) <= tokens
    assert 0 < len(cut.prompt) < len("we saw the film")
    assert chatty.decode(cut.input_ids) == f"<user>{cut.prompt};>"


def test_a_template_that_fills_the_query_is_refused(chatty: PreTrainedTokenizerBase, params: Params) -> None:
    with pytest.raises(UserError, match="prompts.tokens = 3: the chat template alone takes as many"):
        query(chatty, params, "we saw", 3, chat=True)


def test_a_tokenizer_without_a_template_is_refused(tokenizer: PreTrainedTokenizerBase, params: Params) -> None:
    with pytest.raises(
        UserError, match="chat_template = True: the base model's tokenizer has no chat template; set it"
    ):
        query(tokenizer, params, "we saw", 9, chat=True)


def test_a_template_may_refuse_a_message(chatty: PreTrainedTokenizerBase) -> None:
    chatty.chat_template = "{{ raise_exception('only the system may speak') }}"
    with pytest.raises(UserError, match=r"template refuses a message \(only the system may speak\)"):
        chat_text(USER, chatty)


@pytest.mark.parametrize("chat", [False, True])
def test_a_query_cut_inside_a_character_ends_before_it(
    chatty: PreTrainedTokenizerBase, params: Params, chat: bool
) -> None:
    tokens = 4 + (len(query(chatty, params, "a", 60, chat=True).input_ids) - 1 if chat else 0)
    cut = query(chatty, params, "café !", tokens, chat)  # c a f, and the first of the two bytes of é
    assert cut.prompt == "caf"
    assert len(cut.input_ids) == (tokens - 1 if chat else tokens)  # in a chat the message is written anew
    whole = query(chatty, params, "caf\N{REPLACEMENT CHARACTER} !", 60, chat)
    assert whole.prompt == "caf\N{REPLACEMENT CHARACTER} !"  # one that stands in the text


def test_nothing_is_lost_or_doubled_where_a_prompt_ends_in_a_replacement_character(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    prompt = "caf\N{REPLACEMENT CHARACTER}"
    given = TextQuery(prompt, tokenizer(prompt)["input_ids"])
    assert continuation(given, tokenizer(" film")["input_ids"], tokenizer, chat=False) == " film"


def test_what_the_score_sees() -> None:
    assert scored_text("we saw", " it", chat=False) == "we saw it"
    assert scored_text("we saw", "it", chat=True) == "we saw\nit"
    assert answer_to("we saw", "we saw it") == " it"
    assert answer_to("they saw", "we saw it") == "we saw it"


def test_a_continuation_is_what_the_response_adds(tokenizer: PreTrainedTokenizerBase, params: Params) -> None:
    start = query(tokenizer, params, "we saw", 9, chat=False)
    ids = tokenizer(" the film")["input_ids"]
    assert continuation(start, ids, tokenizer, chat=False) == " the film"
    assert continuation(start, ids, tokenizer, chat=True) == " the film"
