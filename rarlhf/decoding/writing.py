"""What `rarlhf generate` does: opens a model that the pipeline made, without its params, and writes with it.

The name is that of what a person at the command line does, write texts; drawing them is `rarlhf.decoding.sampling`.
A model's folder tells what it holds: a whole model, or an adapter with the name of its base and how that was held in
memory.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rarlhf.config.errors import UserError
from rarlhf.data.queries import TextQuery, continuation
from rarlhf.decoding.conditioned import Conditioned
from rarlhf.decoding.prompts import left_pad
from rarlhf.decoding.rules import DecodingRule
from rarlhf.decoding.sampling import Decoding, Numbers, draw, random_numbers
from rarlhf.models.adapters import POLICY, attach, storage_in_training
from rarlhf.models.context import positions_of
from rarlhf.models.episodes import Episodes, chunks, real_tokens
from rarlhf.models.files import base_of, is_adapter
from rarlhf.models.folders import refuse_no_language_model
from rarlhf.models.loading import load_backbone, load_causal_lm, load_tokenizer
from rarlhf.models.policy import Sampling
from rarlhf.models.way import Way, own_way

LONGEST = 48  # new tokens by default, as the paper's longest responses; fewer if the context is short


class Choices(NamedTuple):
    """How continuations are drawn."""

    samples: int  # continuations of each prompt
    max_new_tokens: int | None  # None: `LONGEST`, or what the context leaves
    temperature: float
    seed: int
    batch_size: int  # continuations written at once: speed and memory


class Written(NamedTuple):
    """One continuation."""

    prompt: int  # its index
    sample: int  # its index among those of the prompt
    text: str
    tokens: int  # the end of text included
    ended: bool  # by the end of text; otherwise it was cut at the limit


class OpenModel(NamedTuple):
    """A language model in eval mode with its tokenizer."""

    lm: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    way: Way = Way()  # how it is decoded


def open_model(folder: Path, device: torch.device, base: Path | None = None) -> OpenModel:
    """Opens a whole model in float32, or an adapter on its base, held as it was in training.

    Args:
        folder: of the model or adapter.
        device: where it goes.
        base: folder of an adapter's base model, if it is not the one that the adapter names.
    Raises: UserError if the folder holds neither, or what it holds cannot be loaded.
    """
    refuse_no_language_model(folder, base)
    if not is_adapter(folder):
        lm, tokenizer = load_causal_lm(str(folder))
        return OpenModel(lm.to(device), tokenizer, own_way(folder))
    tokenizer = load_tokenizer(str(folder))
    place = base_of(folder) if base is None else base
    storage = storage_in_training(folder)
    lm = load_backbone(str(place), storage, device) if storage else load_causal_lm(str(place))[0].to(device)
    attach(lm, folder, POLICY)
    return OpenModel(lm.eval(), tokenizer, own_way(folder))


def write(
    model: OpenModel, prompts: Sequence[str], choices: Choices, rule: DecodingRule | None = None
) -> Iterator[Written]:
    """Continues every prompt, in order, all samples of one together.

    The random numbers of a continuation depend on the seed and the indices of prompt and sample alone. So neither the
    batch size nor other prompts change it, apart from rounding in the model's own numbers.

    Raises: UserError if a prompt has no token, or prompt and new tokens together are more than the model reads.
    """
    rows = [_tokens(model.tokenizer, prompt) for prompt in prompts]
    length = _new_tokens(model.lm, [[*model.way.before, *row] for row in rows], choices.max_new_tokens)
    sampling = Sampling(choices.temperature, 0, length, model.tokenizer.eos_token_id)
    decoding = Decoding(model.lm, sampling, Conditioned(model.way, rule) if any(model.way) else rule)
    jobs = [(index, sample) for index in range(len(rows)) for sample in range(choices.samples)]
    for batch in chunks(torch.arange(len(jobs)), choices.batch_size):
        some = [jobs[i] for i in batch]
        episodes = _episodes(decoding, [rows[index] for index, _ in some], some, choices.seed)
        for (index, sample), response, mask in zip(some, *(x.tolist() for x in episodes[2:]), strict=True):
            ids = real_tokens(response, mask)
            text = continuation(TextQuery(prompts[index], rows[index]), ids, model.tokenizer, chat=False)
            yield Written(index, sample, text, len(ids), ids[-1] == sampling.end_id)


def _tokens(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    ids = list(tokenizer(prompt)["input_ids"])
    return ids[:-1] if ids[-1:] == [tokenizer.eos_token_id] else ids  # some tokenizers end every text


def _episodes(decoding: Decoding, rows: Sequence[list[int]], jobs: Sequence[tuple[int, int]], seed: int) -> Episodes:
    shape, draws = (decoding.sampling.max_new_tokens,), decoding.rule.draws if decoding.rule else 1
    each = [random_numbers(("write", seed, *job), shape, draws) for job in jobs]
    numbers = Numbers(*(torch.stack(fields, dim=1) for fields in zip(*each, strict=True)))
    device = decoding.lm.device
    return draw(decoding, left_pad(rows, decoding.sampling.end_id, device), numbers.to(device)).episodes


def _new_tokens(lm: PreTrainedModel, rows: Sequence[list[int]], wanted: int | None) -> int:
    """The most new tokens: they must fit behind the longest prompt."""
    for number, row in enumerate(rows, start=1):
        if not row:
            raise UserError(f"prompt {number} has no token to continue; write a longer one")
    context = positions_of(lm.config)
    if context is None:
        return wanted or LONGEST
    longest = max(range(len(rows)), key=lambda index: len(rows[index]))
    room = context - len(rows[longest])
    if room < (wanted or 1):
        raise UserError(
            f"prompt {longest + 1} has {len(rows[longest])} tokens and {wanted or 1} must follow, but the model "
            f"reads {context} in all; shorten the prompt" + (" or lower --max-new-tokens" if room > 0 else "")
        )
    return wanted or min(LONGEST, room)
