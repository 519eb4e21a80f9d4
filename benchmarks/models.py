"""The models that both sides load: a GPT-2 shape, a small classifier of the same kind, and one tokenizer of words."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel, PreTrainedTokenizerFast

from benchmarks.setting import Work

CLASSIFIER = {"n_layer": 1, "n_embd": 64, "n_head": 2}


def make_models(folder: Path, work: Work, init_std: float = 0.02) -> None:
    """Writes `lm`, `classifier`, `tokenizer` and `queries.json` to `folder`, all random with a fixed seed."""
    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    length = work.query_tokens + work.response_tokens
    common = {"n_positions": length, "bos_token_id": 0, "eos_token_id": 0, "initializer_range": init_std}
    shape = {"vocab_size": work.vocab_size, "n_layer": work.layers, "n_embd": work.width, "n_head": work.heads}
    GPT2LMHeadModel(GPT2Config(**shape, **common)).save_pretrained(folder / "lm")
    # The padding token is one that no policy can draw.
    config = GPT2Config(
        vocab_size=work.vocab_size + 1, pad_token_id=work.vocab_size, num_labels=1, **CLASSIFIER, **common
    )
    GPT2ForSequenceClassification(config).save_pretrained(folder / "classifier")
    words_tokenizer(work.vocab_size).save_pretrained(folder / "tokenizer")
    rows = queries(work, 4 * work.episodes)
    (folder / "queries.json").write_text(json.dumps(rows), encoding="utf-8")


def words_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """A tokenizer of the words w0, w1, ...; w0 is the end of text, and padding comes after the last word."""
    words = {f"w{index}": index for index in range(vocab_size)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="w1"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="w0", pad_token="[PAD]", unk_token="w1", padding_side="right"
    )


def queries(work: Work, count: int) -> list[list[int]]:
    """Token ids of `count` queries, all of the same length, drawn with a fixed seed."""
    draws = torch.Generator().manual_seed(1)
    return torch.randint(1, work.vocab_size, (count, work.query_tokens), generator=draws).tolist()
