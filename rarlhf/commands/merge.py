"""An adapter and its base made into one plain model."""

from pathlib import Path
from typing import NamedTuple

import bitsandbytes
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from rarlhf.decoding.rules import Prompts
from rarlhf.decoding.sampling import Decoding, sample_responses
from rarlhf.models.adapters import POLICY, attach, storage_in_training
from rarlhf.models.episodes import Episodes
from rarlhf.models.files import base_of
from rarlhf.models.folders import refuse_no_merge
from rarlhf.models.loading import load_backbone, load_causal_lm, save_model
from rarlhf.models.policy import Sampling, response_logprobs
from rarlhf.system.files import whole
from rarlhf.system.streams import generator

PROBE_TEXTS, PROBE_TOKENS = 8, 32  # what merging is measured on: texts that the adapter's own model continues
CPU = torch.device("cpu")


class Difference(NamedTuple):
    """How far the merged model is from the adapter on its backbone as trained, in nats per token."""

    quantization: str | None  # of that backbone; None where the adapter's folder does not say
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

    An adapter of an 8-bit backbone is merged with the weights as they were rounded, which it was trained on; what is
    left of the difference is the rounding of activations. The folder appears whole or not at all.

    Args:
        adapter: folder of an adapter.
        out: folder to make; an empty one may be there.
        base: folder of the base model, where it is not the one that the adapter names.
    Returns: how far the merged model's log-probabilities are from the adapter's, measured.
    Raises: UserError if `out` is taken, `adapter` is none, its base is not there, or the two do not fit.
    """
    refuse_no_merge(adapter, out, base)
    storage = storage_in_training(adapter)
    place = str(base_of(adapter) if base is None else base)
    lm, tokenizer = load_causal_lm(place)
    trained = lm
    if storage is not None and storage.quantization == "int8":
        trained = load_backbone(place, storage, CPU)
        _take_rounded(lm, trained)
        attach(trained, adapter, POLICY)
    model = attach(lm, adapter, POLICY)
    probe = _probe(trained, tokenizer)
    before = _logprobs(trained, probe)
    merged = model.merge_and_unload()
    difference = (_logprobs(merged, probe) - before).abs()
    with whole(out) as folder:
        save_model(merged, tokenizer, folder)
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


def _probe(lm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Episodes:
    """Texts that the model samples from nothing, all of one length."""
    end_id = tokenizer.eos_token_id
    start = torch.full((PROBE_TEXTS, 1), end_id)
    uniforms = torch.rand(PROBE_TEXTS, PROBE_TOKENS, generator=generator("merge"))
    prompts = Prompts(start, torch.ones_like(start, dtype=torch.bool))
    return sample_responses(Decoding(lm, _sampling(end_id)), prompts, uniforms)


@torch.no_grad()
def _logprobs(lm: PreTrainedModel, probe: Episodes) -> Tensor:
    return response_logprobs(lm.eval(), probe, _sampling(int(probe.queries[0, 0])))
