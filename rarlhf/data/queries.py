"""Text to queries and back: token ids of a prompt, bare or in a chat template, and the text that is scored.

In a chat (`prompts.chat_template`) the prompt is the user's message and the response the assistant's answer. The
scored text is the message, a line break and the answer, without the template or a system message.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from rarlhf.config.errors import UserError
from rarlhf.config.params import PromptParams
from rarlhf.models.episodes import Episodes, real_tokens

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # the decoder writes this for an incomplete character
PlainPrompts = Mapping[tuple[int, ...], str]  # token ids of a query in a chat template to its message


class TextQuery(NamedTuple):
    """The beginning of a text, which a response continues."""

    prompt: str  # without the template and without an incomplete last character
    input_ids: list[int]


def text_query(text: str, tokenizer: PreTrainedTokenizerBase, params: PromptParams) -> TextQuery:
    """The first tokens of `text` as a query of at most `prompts.tokens` tokens, including the template's.

    Raises: UserError if there is no template, or it alone takes as many tokens.
    """
    if params.chat_template:
        return _chat_query(text, tokenizer, params.tokens)
    ids = tokenizer(text, truncation=True, max_length=params.tokens)["input_ids"]
    if (
        len(ids) > 1 and ids[-1] == tokenizer.eos_token_id
    ):  # some tokenizers end every text, but a query is to be continued
        ids = ids[:-1]
    return TextQuery(_whole_characters(ids, text, tokenizer), ids)


def _whole_characters(ids: list[int], text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Text of `ids`, the first tokens of `text`; a character that is cut in two belongs to the response."""
    prompt = str(tokenizer.decode(ids, skip_special_tokens=True))
    return prompt if text.startswith(prompt) else prompt.rstrip(REPLACEMENT)


def _chat_query(text: str, tokenizer: PreTrainedTokenizerBase, tokens: int) -> TextQuery:
    room = tokens - len(_chat_ids("", tokenizer))
    while room > 0:
        ids = tokenizer(text, add_special_tokens=False, truncation=True, max_length=room)["input_ids"]
        prompt = _whole_characters(ids, text, tokenizer)
        whole = _chat_ids(prompt, tokenizer)
        if len(whole) <= tokens:
            return TextQuery(prompt, whole)
        room -= len(whole) - tokens  # the border between template and message may move with the message's length
    raise UserError(
        f"prompts.tokens = {tokens}: the chat template alone takes as many; raise it by the prompt's length"
    )


def _chat_ids(message: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    text = chat_text([{"role": "user", "content": message}], tokenizer, add_generation_prompt=True)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def chat_text(messages: Sequence[Mapping[str, str]], tokenizer: PreTrainedTokenizerBase, **options: bool) -> str:
    """Messages as the tokenizer's template writes them.

    Raises: UserError if there is no template, or it refuses the messages.
    """
    if tokenizer.chat_template is None:
        raise UserError(
            "prompts.chat_template = True: the base model's tokenizer has no chat template; set it to false, or take a "
            "model that was made for chats"
        )
    from jinja2 import TemplateError

    try:
        return str(tokenizer.apply_chat_template(list(messages), tokenize=False, **options))
    except TemplateError as error:
        raise UserError(
            f"prompts.chat_template = True: the tokenizer's template refuses a message ({error})"
        ) from error


def answer_to(prompt: str, text: str) -> str:
    """The part of `text` after `prompt`; all of `text` if it does not begin with `prompt`."""
    return text[len(prompt) :] if text.startswith(prompt) else text


def scored_text(prompt: str, response: str, chat: bool) -> str:
    """The text that the score sees."""
    return f"{prompt}\n{response}" if chat else prompt + response


def continuation(query: TextQuery, response: list[int], tokenizer: PreTrainedTokenizerBase, chat: bool) -> str:
    """Text that the response adds to the prompt; prompt and continuation together are the text of all tokens.

    A character that begins in the query's last token is part of it.
    """
    if chat:
        return str(tokenizer.decode(response, skip_special_tokens=True))
    text = tokenizer.decode(query.input_ids + response, skip_special_tokens=True)
    for prompt in (query.prompt, query.prompt.rstrip(REPLACEMENT)):
        if text.startswith(prompt):
            return str(text[len(prompt) :])
    return str(tokenizer.decode(response, skip_special_tokens=True))


def episode_texts(
    episodes: Episodes, tokenizer: PreTrainedTokenizerBase, plain_prompts: PlainPrompts | None
) -> list[str]:
    """The scored text of each query with its response, without special tokens and without a template.

    Args:
        episodes: B episodes.
        tokenizer: of the model.
        plain_prompts: messages of the queries in a chat template; None where there is none.
    """
    rows = zip(*(field.tolist() for field in episodes), strict=True)
    pairs = [(real_tokens(query, q_mask), real_tokens(response, r_mask)) for query, q_mask, response, r_mask in rows]
    if plain_prompts is None:
        return list(tokenizer.batch_decode([query + response for query, response in pairs], skip_special_tokens=True))
    answers = tokenizer.batch_decode([response for _, response in pairs], skip_special_tokens=True)
    prompts = [plain_prompts[tuple(query)] for query, _ in pairs]
    return [scored_text(prompt, answer, chat=True) for prompt, answer in zip(prompts, answers, strict=True)]
