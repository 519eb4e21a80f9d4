"""The base model: a given one, or a GPT-2-shaped one that is trained from scratch on the rows."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.utils.data import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from rarlhf.config.errors import UserError
from rarlhf.config.params import ModelParams, ScratchModelParams
from rarlhf.messages.progress import Recorder
from rarlhf.models.given import given_causal_lm
from rarlhf.models.loading import save_model
from rarlhf.system.machine import Machine
from rarlhf.system.streams import seed_globals
from rarlhf.training.supervised import LossCurve, fit, steps_in, training_options

END_OF_TEXT = "<|endoftext|>"
IGNORED = -100  # a target that transformers leaves out of the loss


def make_base_model(
    texts: Sequence[str], folder: Path, params: ModelParams, machine: Machine, recorder: Recorder
) -> LossCurve:
    """Writes the base model to `folder`; returns its training curve, empty for a given model.

    Args:
        texts: training texts, used if `model.source` is scratch.
        folder: where the model and its tokenizer are written.
        params: section `model`.
        machine: device and precision.
        recorder: takes the loss.
    """
    if params.source != "scratch":
        given_causal_lm(params).write(folder)
        return []
    tokenizer = train_tokenizer(texts, params.scratch)
    model = new_model(tokenizer, params.scratch).to(machine.device)
    p = params.scratch
    rows = packed_rows(texts, tokenizer, p.context) if p.packing else single_rows(texts, tokenizer, p.context)
    steps = steps_in(len(rows), p.batch_size, p.epochs)
    options = training_options(machine, p.epochs, p.batch_size, p.lr, "cosine", p.seed, steps)
    options["warmup_steps"] = round(p.warmup * steps)
    size = f"{len(rows):,} rows of {rows.rows.shape[1]} tokens"
    recorder.say(f"{model.num_parameters():,} parameters, {size}, {steps:,} steps")
    curve = fit("base model", model, rows, None, options, steps, recorder)
    save_model(model, tokenizer, folder)
    return curve


def train_tokenizer(texts: Sequence[str], params: ScratchModelParams) -> PreTrainedTokenizerBase:
    """A byte-level BPE tokenizer of `texts` with one special token, which begins, ends and pads."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=params.vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        model_max_length=params.context,
        clean_up_tokenization_spaces=False,
    )


def new_model(tokenizer: PreTrainedTokenizerBase, params: ScratchModelParams) -> GPT2LMHeadModel:
    """A GPT-2-shaped model with weights drawn from `params.seed`, without dropout."""
    seed_globals("base", params.seed)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=params.context,
        n_embd=params.width,
        n_layer=params.layers,
        n_head=params.heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        initializer_range=params.init_std,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return GPT2LMHeadModel(config)


class TokenRows(Dataset[dict[str, Tensor]]):
    """Rows of tokens of one length; each row is its own target, without the padding."""

    def __init__(self, rows: Tensor, lengths: Tensor) -> None:
        self.rows = rows
        self.real = torch.arange(rows.shape[1]) < lengths.unsqueeze(1)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        row, real = self.rows[index], self.real[index]
        return {
            "input_ids": row,
            "labels": row.masked_fill(~real, IGNORED),
        }  # padding comes last, so no real token attends to it


def packed_rows(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, length: int) -> TokenRows:
    """Texts joined by the end of text and cut into rows of `length` tokens; an incomplete last row is left out.

    Raises: UserError if the texts fill no row.
    """
    ids = [token for row in _ended(texts, tokenizer) for token in row]
    count = len(ids) // length
    if count == 0:
        raise UserError(
            f"the training texts fill no row of {length} tokens; give more rows or lower model.scratch.context"
        )
    return TokenRows(torch.tensor(ids[: count * length]).view(count, length), torch.full((count,), length))


def single_rows(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, length: int) -> TokenRows:
    """One text a row with the end of text, cut or padded to `length` tokens, or to the longest row if shorter."""
    ended = [row[:length] for row in _ended(texts, tokenizer)]
    width = max(len(row) for row in ended)
    rows = torch.tensor([row + [tokenizer.pad_token_id] * (width - len(row)) for row in ended])
    return TokenRows(rows, torch.tensor([len(row) for row in ended]))


def _ended(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    encoded: Any = tokenizer(list(texts), truncation=False, verbose=False)
    return [[*row, tokenizer.eos_token_id] for row in encoded["input_ids"]]
