"""Queries, SFT texts and perplexity texts cut from rows."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rarlhf.config.errors import UserError
from rarlhf.config.params import Params, PromptParams
from rarlhf.data.prompts import PromptSets, make_prompts, warn_of_ends
from rarlhf.data.rows import Row
from rarlhf.messages.progress import SilentRecorder

TRAIN = [Row(f"we saw the {'old ' * i}film .", label=i % 2) for i in range(10)]
TEST = [Row(f"we liked the {'weak ' * i}music .", label=i % 2) for i in range(6)]
Make = Callable[..., PromptSets]


def length(texts: Sequence[str]) -> Tensor:
    return torch.tensor([float(len(text)) for text in texts])


@pytest.fixture
def make(tokenizer: PreTrainedTokenizerBase, params: Params) -> Make:
    """Makes prompts of TRAIN and TEST; keywords change the section."""
    small = {"tokens": 5, "min_chars": 0, "train": 4, "validation": 3, "perplexity": 2, "perplexity_chars": 9}

    def sets(
        train: Sequence[Row] = TRAIN, test: Sequence[Row] = TEST, sft_texts: Any = "wanted", **values: object
    ) -> PromptSets:
        # model_copy does not look at ranges: 5 test prompts are fewer than the least that params.yaml may ask for
        section: PromptParams = params.prompts.model_copy(update=small | {"test": 5} | values)
        return make_prompts(train, test, tokenizer, length, section, SilentRecorder(), sft_texts)

    return sets


def test_queries_are_the_first_tokens_with_their_own_score(make: Make, tokenizer: PreTrainedTokenizerBase) -> None:
    sets = make()
    for queries, rows in ((sets.train, TRAIN), (sets.validation, TRAIN), (sets.test, TEST)):
        for query in queries:
            row = rows[query["prompt_id"]]
            assert query["input_ids"] == tokenizer(row.text)["input_ids"][:5]
            assert query["prompt"] == tokenizer.decode(query["input_ids"])
            assert row.text.startswith(query["prompt"])
            assert query["prompt_score"] == len(query["prompt"])
            assert query["label"] == row.label


def test_the_sets_have_their_sizes_and_share_no_row(make: Make) -> None:
    sets = make()
    train, validation = ([query["prompt_id"] for query in queries] for queries in (sets.train, sets.validation))
    assert (len(train), len(validation), len(sets.test)) == (4, 3, 5)
    assert len(set(train + validation)) == 7
    assert sets.counts["train"] == {"not needed": 3, "used": 7}
    assert sets.counts["test"] == {"not needed": 1, "used": 5}


def test_the_seed_chooses_the_rows(make: Make) -> None:
    assert make() == make()
    assert [query["prompt_id"] for query in make(seed=99).train] != [query["prompt_id"] for query in make().train]


def test_sft_texts_are_all_wanted_rows_and_perplexity_texts_a_few_cut_ones(make: Make) -> None:
    sets = make()
    assert sets.sft == [{"text": row.text} for row in TRAIN if row.label == 1]
    assert len(sets.perplexity) == 2
    assert set(sets.perplexity) <= {row.text[:9] for row in TEST if row.label == 1}
    assert (sets.counts["sft"], sets.counts["perplexity"]) == (5, 2)
    assert len(make(perplexity=50).perplexity) == 3  # as many as there are


def test_the_texts_of_both_classes_where_they_are_asked_for(make: Make) -> None:
    everything = make(sft_texts="all", perplexity_texts="all", perplexity=50)
    assert everything.sft == [{"text": row.text} for row in TRAIN]
    assert sorted(everything.perplexity) == sorted(row.text[:9] for row in TEST)
    assert (everything.counts["sft"], everything.counts["perplexity"]) == (10, 6)
    wanted = make(perplexity=50)
    assert everything.train == wanted.train
    assert make(sft_texts="all").perplexity == make().perplexity
    assert make(perplexity_texts="all").sft == make().sft


def test_without_labels_the_wanted_rows_are_those_above_the_quantile(make: Make) -> None:
    train, test = ([Row(row.text) for row in rows] for rows in (TRAIN, TEST))
    sets = make(train=train, test=test, wanted_quantile=0.72)  # of 10 the 7 lowest are left out, of 6 the 4 lowest
    assert sets.sft == [{"text": row.text} for row in TRAIN[7:]]  # the longest, as the score is the length
    assert sorted(sets.perplexity) == sorted(row.text[:9] for row in TEST[4:])
    assert {query["label"] for query in sets.train} == {None}
    everything = make(train=train, test=test, wanted_quantile=0, perplexity=50)
    assert everything.sft == [{"text": row.text} for row in TRAIN]
    assert len(everything.perplexity) == 6
    equal = [Row("we saw it .")] * 3 + [Row("we saw it !")]
    assert len(make(train=[*train, *equal], wanted_quantile=0.99).sft) == 1


def test_a_rows_own_prompt_comes_before_its_text(make: Make) -> None:
    rows = [Row(row.text, row.label, prompt="we regret") for row in TEST]
    assert {query["prompt"] for query in make(test=rows, tokens=30).test} == {"we regret"}


def test_short_and_empty_rows_are_counted_by_reason(make: Make) -> None:
    blank = Row("   \n  \n  \n  \n", 1)
    sets = make(test=[blank, Row("x", 1), *TEST], min_chars=8, tokens=2)
    used = {query["prompt_id"] for query in sets.test}
    assert not used & {0, 1}
    rows = [blank, Row("x", 1), *TEST[:4]]
    with pytest.raises(UserError) as caught:
        make(test=rows, min_chars=8, tokens=2)
    assert str(caught.value) == (
        "only 4 of 6 test rows make a query and 5 are asked for (1 empty prompt, 1 shorter than 8 characters); "
        "lower prompts.test or prompts.min_chars, or give more rows"
    )


def test_too_few_rows_are_refused_with_the_key(make: Make) -> None:
    with pytest.raises(UserError, match="only 10 of 10 train rows make a query and 12 are asked for .*prompts.train"):
        make(train=TRAIN, validation=8)
    with pytest.raises(UserError, match=r"only 0 of 0 train rows .* \(no rows\)"):
        make(train=[])


def test_without_a_wanted_test_row_there_is_no_perplexity(make: Make) -> None:
    with pytest.raises(UserError, match="no test row is of the wanted class"):
        make(test=[Row(row.text, 0) for row in TEST])


def test_it_is_said_where_sft_would_teach_to_stop_at_once(tokenizer: PreTrainedTokenizerBase, params: Params) -> None:
    def warning(records: list[dict[str, object]], **sft: object) -> str | None:
        query = params.prompts.model_copy(update={"tokens": 5})
        return warn_of_ends(records, tokenizer, query, params.sft.model_copy(update={"end_of_text": True} | sft))

    short, long = (
        {"text": tokenizer.decode(tokenizer("we saw the old film .")["input_ids"][:5])},
        {"text": "we saw " * 9},
    )
    said = warning([short] + 9 * [long])
    assert said is not None
    assert "1 of 10 SFT texts are no longer than a query (prompts.tokens = 5)" in said
    assert "set sft.end_of_text to false" in said
    assert warning([short] + 10 * [long]) is None  # less than a tenth
    assert warning([short], end_of_text=False) is None
    assert warning([short], epochs=0) is None
    assert warning([{"messages": []}]) is None
