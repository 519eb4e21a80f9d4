"""Models that the engine would run otherwise than they run themselves, and lengths they were not made for."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GPT2LMHeadModel, PreTrainedTokenizerBase

from rarlhf.config.errors import UserError
from rarlhf.config.params import Params
from rarlhf.decoding.compatible import refuse_incompatible
from rarlhf.models.context import context_length
from rarlhf.models.lengths import refuse_too_long


def test_a_model_whose_logits_are_its_embeddings_of_its_states_is_taken(
    lm: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    refuse_incompatible(lm, tokenizer)


def changed_logits(lm: GPT2LMHeadModel, change: Callable[[Tensor], Tensor]) -> GPT2LMHeadModel:
    """The model with something done to its logits behind the output embeddings."""
    forward = lm.forward

    def other(*args: Any, **keywords: Any) -> Any:
        output = forward(*args, **keywords)
        output.logits = change(output.logits)
        return output

    lm.forward = other
    return lm


@pytest.mark.parametrize(
    "change", [lambda x: x / 4, lambda x: 5 * torch.tanh(x / 5)], ids=["scaled as in Cohere", "capped as in Gemma 2"]
)
def test_a_model_that_does_more_to_its_logits_is_refused(
    change: Callable[[Tensor], Tensor], lm: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    with pytest.raises(UserError, match="GPT2LMHeadModel does not compute its logits by its output embeddings alone"):
        refuse_incompatible(changed_logits(lm, change), tokenizer)


def test_a_model_that_minds_padding_is_refused(
    lm: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = lm.transformer.forward

    def without_positions(*args: Any, position_ids: Tensor | None = None, **keywords: Any) -> Any:
        return forward(*args, **keywords)

    monkeypatch.setattr(lm.transformer, "forward", without_positions)
    with pytest.raises(UserError, match=r"or does not support padding on the left \(off by "):
        refuse_incompatible(lm, tokenizer)


def test_a_tokenizer_of_another_model_is_refused(lm: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerBase) -> None:
    size = len(tokenizer)
    lm.resize_token_embeddings(size - 1)
    with pytest.raises(UserError, match=f"the tokenizer has {size} tokens and the model embeddings for {size - 1}"):
        refuse_incompatible(lm, tokenizer)


def test_what_the_library_raises_is_one_line(lm: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerBase) -> None:
    def fails(logits: Tensor) -> Tensor:
        raise NotImplementedError("no such\ncache")

    with pytest.raises(UserError, match=r"cannot be trained here \(NotImplementedError: no such cache\)"):
        refuse_incompatible(changed_logits(lm, fails), tokenizer)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps({"text_config": {"max_position_embeddings": 31}}))
    return tmp_path


def test_the_context_is_read_from_the_folder(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    assert context_length(folder) == 31
    (folder / "config.json").write_text(json.dumps({"n_positions": 7}))
    assert context_length(folder) == 7
    assert context_length(tmp_path_factory.mktemp("empty")) is None


@pytest.mark.parametrize(
    ("query", "response", "sft", "epochs", "message"),
    [
        (8, 24, 20, 1, r"prompts.tokens = 8, ppo.max_new_tokens = 24: together 32 tokens, and the .* has 31 positions"),
        (8, 23, 32, 1, r"sft.tokens = 32: the base model .* has 31 positions; lower sft.tokens"),
        (8, 23, 32, 0, None),
        (8, 23, 31, 1, None),
    ],
)
def test_lengths_beyond_the_context_are_refused(
    query: int, response: int, sft: int, epochs: int, message: str | None, folder: Path, params: Params
) -> None:
    sections = {
        "prompts": params.prompts.model_copy(update={"tokens": query}),
        "ppo": params.ppo.model_copy(update={"max_new_tokens": response}),
        "sft": params.sft.model_copy(update={"tokens": sft, "epochs": epochs}),
    }
    asked = params.model_copy(update=sections)
    if message is None:
        refuse_too_long(folder, asked)
    else:
        with pytest.raises(UserError, match=message):
            refuse_too_long(folder, asked)
