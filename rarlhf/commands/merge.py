"""Merges an adapter and its base into one plain model."""

from pathlib import Path
from typing import NamedTuple

import bitsandbytes
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from rarlhf.decoding.conditioned import Conditioned
from rarlhf.decoding.prompts import Prompts
from rarlhf.decoding.sampling import Decoding, sample_responses
from rarlhf.models.adapters import POLICY, attach, storage_in_training
from rarlhf.models.episodes import Episodes
from rarlhf.models.files import base_of
from rarlhf.models.folders import refuse_no_merge
from rarlhf.models.loading import load_backbone, load_causal_lm, load_tokenizer, save_model
from rarlhf.models.policy import Sampling, logits_of, response_states, token_logprobs
from rarlhf.models.tokens import join_tables
from rarlhf.models.way import Way, own_way, without, write_way
from rarlhf.system.files import whole
from rarlhf.system.streams import generator

PROBE_TEXTS, PROBE_TOKENS = 8, 32  # the difference is measured on texts that the adapter's model samples
CPU = torch.device("cpu")


class Difference(NamedTuple):
    """How far the merged model is from the adapter on its backbone as trained, in nats per token."""

    quantization: str | None  # of that backbone; None if the adapter's folder has no note of it
    largest: float
    mean: float

    def text(self) -> str:
        """A sentence for the person who merged."""
        words = {"none": "the backbone as trained", "int8": "the 8-bit backbone that it was trained on"}
        backbone = words[self.quantization] if self.quantization else "its base (what it was trained on is not noted)"
        return (
            f"Log-probabilities of {PROBE_TEXTS * PROBE_TOKENS} sampled tokens differ from those of the adapter on "
            f"{backbone} by {self.largest:.2g} nats at most and {self.mean:.2g} in the mean"
        )


def merge_adapter(adapter: Path, out: Path, base: Path | None = None) -> Difference:
    """Writes base and adapter as one model to `out`, in float32, as plain transformers loads it.

    An adapter of an 8-bit backbone is merged with the rounded weights, on which it was trained; the remaining
    difference is the rounding of activations. After a failure there is no folder.

    Args:
        adapter: folder of an adapter.
        out: folder to make; it may exist if it is empty.
        base: folder of the base model, if it is not the one that the adapter names.
    Returns: the measured distance of the merged model's log-probabilities from the adapter's.
    Raises: UserError if `out` is not empty, `adapter` holds no adapter, its base is missing, or the two do not fit.
    """
    refuse_no_merge(adapter, out, base)
    storage, way = storage_in_training(adapter), own_way(adapter)
    place = str(base_of(adapter) if base is None else base)
    lm, tokenizer = load_causal_lm(place)
    tied = lm.config.tie_word_embeddings
    trained = lm
    if storage is not None and storage.quantization == "int8":
        trained = load_backbone(place, storage, CPU)
        _take_rounded(lm, trained)
        attach(trained, adapter, POLICY)
    model = attach(lm, adapter, POLICY)
    probed = tokenizer.eos_token_id, way
    probe = _probe(trained, *probed)
    before = _logprobs(trained, *probed, probe)
    merged = model.merge_and_unload()
    if any(way):  # the adapter has tokens of its own
        tokenizer = load_tokenizer(str(adapter))
        join_tables(merged, way.never, tied)
    difference = (_logprobs(merged, *probed, probe) - before).abs()
    with whole(out) as folder:
        save_model(merged, tokenizer, folder)
        if any(way):
            write_way(way, merged, folder)
    return Difference(storage.quantization if storage else None, float(difference.max()), float(difference.mean()))


@torch.no_grad()
def _take_rounded(lm: PreTrainedModel, quantised: PreTrainedModel) -> None:
    """Puts the weights of an 8-bit model into a float32 one, as they are after rounding."""
    for name, module in quantised.named_modules():
        if isinstance(module, bitsandbytes.nn.Linear8bitLt):
            rounded = bitsandbytes.functional.int8_vectorwise_dequant(module.weight.data, module.weight.SCB)
            target = lm.get_submodule(name)
            target.weight.copy_(rounded.T if isinstance(target, Conv1D) else rounded)


def _sampling(end_id: int) -> Sampling:
    return Sampling(1.0, PROBE_TOKENS, PROBE_TOKENS, end_id)


def _probe(lm: PreTrainedModel, end_id: int, way: Way) -> Episodes:
    """Texts of equal length that the model samples after a start token, or after its own tokens."""
    start = torch.tensor([[*way.before] or [end_id]]).expand(PROBE_TEXTS, -1)
    uniforms = torch.rand(PROBE_TEXTS, PROBE_TOKENS, generator=generator("merge"))
    prompts = Prompts(start, torch.ones_like(start, dtype=torch.bool))
    rule = Conditioned(Way(never=way.never))
    return sample_responses(Decoding(lm, _sampling(end_id), rule), prompts, uniforms)


@torch.no_grad()
def _logprobs(lm: PreTrainedModel, end_id: int, way: Way, probe: Episodes) -> Tensor:
    """(B, T) log-probabilities of the probe's tokens, nats, without the tokens that are never drawn."""
    logits = without(logits_of(lm.eval(), response_states(lm, probe)), way.never)
    return token_logprobs(logits, probe.responses, _sampling(end_id))
