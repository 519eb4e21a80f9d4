"""Rows become queries, SFT texts and perplexity texts (as the paper's code does in `build_dataset`)."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import floor
from random import Random
from typing import Any, Literal, TypedDict

import torch
from transformers import PreTrainedTokenizerBase

from rarlhf.config.errors import UserError
from rarlhf.config.params import PromptParams, SFTParams
from rarlhf.data.queries import PlainPrompts, answer_to, text_query
from rarlhf.data.rows import Row
from rarlhf.messages.progress import Recorder
from rarlhf.rewards.scorers import Score


class Query(TypedDict):
    """One query, a line of data/prompts/*.jsonl."""

    prompt_id: int  # index of its row in data/raw
    prompt: str
    prompt_score: float  # score of the bare prompt by the reward model
    label: int | None  # label of its row; None if rows have no labels
    input_ids: list[int]


def plain_prompts(queries: Iterable[Query], chat: bool) -> PlainPrompts | None:
    """The messages of queries in a chat template, which the score sees; None where there is no template."""
    return {tuple(query["input_ids"]): query["prompt"] for query in queries} if chat else None


SHORT_SHARE = 0.1  # share of the SFT texts; if as many are no longer than a query, the model learns to stop at once
SFTRecord = dict[str, Any]  # {"text": ...} or, in a chat, {"messages": [user's, assistant's]}: what trl reads


@dataclass(frozen=True)
class PromptSets:
    """All that stage `prompts` writes."""

    train: list[Query]
    validation: list[Query]
    test: list[Query]
    sft: list[SFTRecord]
    perplexity: list[str]
    counts: dict[str, Any]


def make_prompts(  # noqa: PLR0913, each is a different thing
    train: Sequence[Row],
    test: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    score: Score,
    params: PromptParams,
    recorder: Recorder,
    sft_texts: Literal["wanted", "all"] = "wanted",
) -> PromptSets:
    """Chooses rows, cuts them to queries and scores the bare prompts.

    Args:
        train: training rows; SFT texts are all their wanted texts, or all their texts.
        test: test rows; perplexity texts are their wanted texts, or any, cut to `perplexity_chars`.
        tokenizer: the base model's.
        score: the reward model.
        params: section `prompts`.
        recorder: shows progress.
        sft_texts: `sft.texts`.
    Raises: UserError if too few rows are left for a set.
    """
    queries, train_counts = _cut(train, tokenizer, params, params.train + params.validation, "train")
    test_queries, test_counts = _cut(test, tokenizer, params, params.test, "test")
    recorder.say(f"scoring {len(queries) + len(test_queries):,} bare prompts")
    for query_set in (queries, test_queries):
        scores = score([query["prompt"] for query in query_set]).tolist()
        for query, value in zip(query_set, scores, strict=True):
            query["prompt_score"] = value
    learned = train if sft_texts == "all" else wanted_rows(train, score, params)
    sft = [record for row in learned for record in sft_records(row, tokenizer, params)]
    measured = test if params.perplexity_texts == "all" else wanted_rows(test, score, params)
    perplexity = _perplexity_texts(measured, params)
    counts = {"train": train_counts, "test": test_counts, "sft": len(sft), "perplexity": len(perplexity)}
    return PromptSets(queries[: params.train], queries[params.train :], test_queries, sft, perplexity, counts)


def warn_of_ends(
    sft: Sequence[SFTRecord], tokenizer: PreTrainedTokenizerBase, prompts: PromptParams, params: SFTParams
) -> str | None:
    """A warning if SFT would teach the model to stop where a query ends; else None.

    Args:
        sft: the texts to learn; chats are not checked, because the template ends their answers.
        tokenizer: the base model's.
        prompts: section `prompts`.
        params: section `sft`.
    """
    texts = [record["text"] for record in sft if "text" in record]
    if not texts or not params.end_of_text or params.epochs == 0:
        return None
    encoded: Any = tokenizer(texts, truncation=True, max_length=prompts.tokens + 1)
    short = sum(len(ids) <= prompts.tokens or ids[-1] == tokenizer.eos_token_id for ids in encoded["input_ids"])
    if short < SHORT_SHARE * len(texts):
        return None
    return (
        f"warning: {short:,} of {len(texts):,} SFT texts are no longer than a query (prompts.tokens = {prompts.tokens})"
        " and sft.end_of_text is true, so the model learns to stop where its answer should begin; set sft.end_of_text "
        "to false, or give longer texts"
    )


def _cut(
    rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, params: PromptParams, wanted: int, split: str
) -> tuple[list[Query], dict[str, int]]:
    """The first `wanted` usable queries of `rows` in a seeded order, and why rows were not used."""
    order = list(range(len(rows)))
    Random(f"prompts/{split}/{params.seed}").shuffle(order)
    counts: Counter[str] = Counter()
    queries: list[Query] = []
    for index in order:
        if len(queries) == wanted:
            break
        query, reason = _query(index, rows[index], tokenizer, params)
        counts[reason] += 1
        if query is not None:
            queries.append(query)
    counts["not needed"] = len(rows) - sum(counts.values())
    if len(queries) < wanted:
        reasons = ", ".join(
            f"{count} {reason}" for reason, count in sorted(counts.items()) if count and reason != "used"
        )
        raise UserError(
            f"only {len(queries)} of {len(rows)} {split} rows make a query and {wanted} are asked for "
            f"({reasons or 'no rows'}); lower prompts.{split} or prompts.min_chars, or give more rows"
        )
    return queries, dict(sorted(counts.items()))


def _query(index: int, row: Row, tokenizer: PreTrainedTokenizerBase, params: PromptParams) -> tuple[Query | None, str]:
    if len(row.text) < params.min_chars:
        return None, f"shorter than {params.min_chars} characters"
    prompt, ids = text_query(row.prompt or row.text, tokenizer, params)
    if not prompt.strip():
        return None, "empty prompt"
    return Query(prompt_id=index, prompt=prompt, prompt_score=0.0, label=row.label, input_ids=ids), "used"


def sft_records(row: Row, tokenizer: PreTrainedTokenizerBase, params: PromptParams) -> list[SFTRecord]:
    """The text to learn; in a chat the answer to the row's prompt, or None if there is no answer."""
    if not params.chat_template:
        return [{"text": row.text}]
    prompt = text_query(row.prompt or row.text, tokenizer, params).prompt
    answer = answer_to(row.prompt or prompt, row.text).strip()
    user, assistant = {"role": "user", "content": prompt}, {"role": "assistant", "content": answer}
    return [{"messages": [user, assistant]}] if prompt.strip() and answer else []


def wanted_rows(rows: Sequence[Row], score: Score, params: PromptParams) -> list[Row]:
    """The rows of the wanted class or, without labels, the rows that score above `wanted_quantile`.

    Of n rows without labels, the floor(quantile n) lowest are left out; among equal scores, the first.
    """
    if any(row.label is not None for row in rows):
        return [row for row in rows if row.label == 1]
    left_out = floor(Fraction(str(params.wanted_quantile)) * len(rows))
    if left_out == 0:
        return list(rows)
    order = torch.argsort(score([row.text for row in rows]), stable=True)
    return [rows[index] for index in sorted(order[left_out:].tolist())]


def _perplexity_texts(rows: Sequence[Row], params: PromptParams) -> list[str]:
    texts = [row.text[: params.perplexity_chars] for row in rows]
    if not texts:
        raise UserError("no test row is of the wanted class, so there is no text to measure perplexity on")
    Random(f"perplexity/{params.seed}").shuffle(texts)
    return texts[: params.perplexity]
