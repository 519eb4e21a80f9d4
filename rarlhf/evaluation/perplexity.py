"""Perplexity of reference text under a model: the paper's perplexity, not that of the model's own generations."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rarlhf.config.errors import UserError
from rarlhf.config.methods import methods_of
from rarlhf.config.params import Params
from rarlhf.evaluation.words import counted
from rarlhf.messages.progress import Recorder
from rarlhf.models.backbone import ModelFolders
from rarlhf.models.context import positions_of
from rarlhf.models.loading import load_tokenizer
from rarlhf.models.policy import logits_of
from rarlhf.models.way import own_way, without
from rarlhf.system.machine import Machine

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


BATCH = 16  # texts per forward pass: memory and speed only


def perplexities_of_methods(
    models: Path, texts: Sequence[str], params: Params, machine: Machine, recorder: Recorder
) -> dict[str, dict[int, float]]:
    """Perplexity of the reference texts under the model of every method and seed; one model is measured once.

    A rule of decoding has none: it is the perplexity of models.

    Args:
        models: folder with the models of all methods.
        texts: at least one, none empty.
        params: `methods`, `seeds`, `model` and `evaluate.add_start_token` are read.
        machine: device and precision.
        recorder: takes a line for each model.

    Returns: method -> seed -> perplexity.

    Raises: UserError as `reference_perplexity`, or if a model is not there.
    """
    folders = ModelFolders(params.model, machine.device)

    def measured(folder: Path) -> float:
        tokenizer = load_tokenizer(str(folder))
        with machine.autocast(), folders.open(folder)() as model:
            start, never = params.evaluate.add_start_token, own_way(folder).never
            value = reference_perplexity(model, tokenizer, texts, BATCH, start, never)
        recorder.say(f"perplexity of {counted(len(texts), 'reference text')} under {folder}: {value:.2f}")
        return value

    perplexities: dict[str, dict[int, float]] = {}
    for method in methods_of(params):
        if not method.has_model:
            continue  # a rule has no likelihood of a given text, or only that of its model
        if method.per_seed:
            perplexities[method.name] = {seed: measured(method.folder(models, seed)) for seed in params.seeds}
        else:
            same = measured(method.folder(models, params.seeds[0]))
            perplexities[method.name] = dict.fromkeys(params.seeds, same)
    return perplexities


def reference_perplexity(  # noqa: PLR0913, PLR0917, each is a different thing
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    texts: Sequence[str],
    batch_size: int,
    add_start_token: bool = True,
    never: Sequence[int] = (),
) -> float:
    """Mean over the texts of exp(mean negative log-likelihood of the text's tokens), natural logarithm.

    The tokenizer's BOS token (or its EOS token, if it has none) comes before every text, so that the first token is
    predicted too; without it the second token is the first one predicted. The whole is cut to the model's context.

    Args:
        model: causal language model, on any device; left in eval mode.
        tokenizer: of the same vocabulary.
        texts: at least one, none empty.
        batch_size: texts per forward pass, >= 1; texts of similar length share a pass; their order has no influence.
        add_start_token: whether the BOS token is put before each text.
        never: tokens that the model never draws, as `own_way` of its folder says; they have probability 0.

    Returns: number >= 1, lower is better; a mean of per-text perplexities, not exp of the corpus mean.

    Raises: UserError if there is no text, a text has no token, or the tokenizer has neither BOS nor EOS.

    Source: `perplexity` of huggingface/evaluate with its defaults, as the authors' evaluation uses it.
    """
    if not texts:
        raise UserError("no reference texts for the perplexity: raise prompts.perplexity")
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if start is None:
        raise UserError("the tokenizer has neither a BOS nor an EOS token: perplexity needs one before each text")
    context = positions_of(model.config)
    before = [start] if add_start_token else []
    rows = [[*before, *tokenizer.encode(text, add_special_tokens=False)][:context] for text in texts]
    if min(map(len, rows)) < 2:
        raise UserError("a reference text for the perplexity has no token to predict: drop empty and one-word texts")
    model.eval()
    losses = torch.cat([_mean_losses(model, batch, never) for batch in _batches(rows, batch_size)])
    return float(losses.exp().mean())


def _batches(rows: list[list[int]], batch_size: int) -> Iterator[list[list[int]]]:
    by_length = sorted(rows, key=lambda row: (len(row), row))
    for first in range(0, len(by_length), batch_size):
        yield by_length[first : first + batch_size]


def _mean_losses(model: "PreTrainedModel", rows: list[list[int]], never: Sequence[int]) -> Tensor:
    """Mean negative log-likelihood of each row's tokens after the first: (len(rows),) float64 on the CPU."""
    lengths = torch.tensor([len(row) for row in rows], device=model.device)
    return (token_losses(model, rows, never).sum(dim=1) / (lengths - 1)).cpu()


@torch.no_grad()
def token_losses(model: "PreTrainedModel", rows: Sequence[Sequence[int]], never: Sequence[int] = ()) -> Tensor:
    """Negative log-likelihood of each token after the first, on the model's device.

    Args:
        model: causal language model.
        rows: R rows of token ids, each of at least one.
        never: tokens of probability 0.

    Returns: (R, W - 1) float64 in nats, with W the longest row's length; 0 behind the end of a row.
    """
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=model.device)
    lengths = torch.tensor([len(row) for row in rows], device=model.device)
    mask = torch.arange(width, device=model.device) < lengths[:, None]
    states = model.base_model(input_ids=ids, attention_mask=mask.long(), use_cache=False).last_hidden_state
    logits = without(logits_of(model, states)[:, :-1], never)
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none").double()
    return losses * mask[:, 1:]
