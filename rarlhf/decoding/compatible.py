"""Whether a language model does what the engine assumes, tested on the model itself before it is trained.

The engine computes logits from hidden states by the output embeddings alone, pads queries on the left, and samples with
a cache. With a model that scales or caps its logits, or keeps its state in another way, the numbers would be wrong and
nothing would show it.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rarlhf.config.errors import UserError
from rarlhf.decoding.prompts import left_pad
from rarlhf.decoding.sampling import Decoding, sample_responses
from rarlhf.models.policy import Sampling, logits_of, response_states

LENGTHS = (5, 2)  # of the queries that are tried, in tokens
NEW_TOKENS = 4
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.25}  # of a log-probability, as a share of the largest logit's size


def refuse_incompatible(lm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Compares the engine's passes over a few tokens with the model's own.

    Args:
        lm: in eval mode; one with 8-bit weights must run, but need not give equal numbers.
        tokenizer: whose tokens the model must have embeddings for.
    Raises: UserError if the model lacks embeddings, cannot be run so, or gives other numbers.
    """
    rows = lm.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise UserError(
            f"model.source: the tokenizer has {len(tokenizer)} tokens and the model embeddings for {rows}; give the "
            "tokenizer that the model was trained with"
        )
    with _one_line(type(lm).__name__):
        off = _largest_difference(lm, tokenizer)
    limit = TOLERANCE.get(lm.dtype, 0.25)
    if off > limit and not getattr(lm, "is_quantized", False):
        raise UserError(
            f"model.source: {type(lm).__name__} does not compute its logits by its output embeddings alone, or does "
            f"not support padding on the left (off by {off:.2g}); such a model cannot be trained here"
        )


@torch.no_grad()
def _largest_difference(lm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> float:
    """Between log-probabilities of the engine's passes, cached and whole, and the model's own on a single text."""
    queries = [[(7 * index + 3) % len(tokenizer) for index in range(length)] for length in LENGTHS]
    prompts = left_pad(queries, tokenizer.eos_token_id, lm.device)
    decoding = Decoding(lm, Sampling(1.0, NEW_TOKENS, NEW_TOKENS, tokenizer.eos_token_id))
    cached: list[Tensor] = []
    uniforms = torch.full((len(queries), NEW_TOKENS), 0.5, device=lm.device)
    episodes = sample_responses(decoding, prompts, uniforms, lambda _, x, *rest: cached.append(x))
    whole = logits_of(lm, response_states(lm, episodes))
    differences = []
    for index, query in enumerate(queries):
        text = torch.tensor([[*query, *episodes.responses[index].tolist()]], device=lm.device)
        own = lm(input_ids=text, use_cache=False).logits[0, len(query) - 1 : -1]
        for engine in (whole[index], torch.stack(cached, dim=1)[index]):
            size = own.float().abs().max().clamp(min=1.0)
            differences.append((_logprobs(engine) - _logprobs(own)).abs().max() / size)
    return float(torch.stack(differences).max())


def _logprobs(logits: Tensor) -> Tensor:
    return logits.float().log_softmax(dim=-1)


@contextmanager
def _one_line(name: str) -> Iterator[None]:
    try:
        yield
    except (AttributeError, IndexError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        first = " ".join(str(error).split())[:200]
        raise UserError(f"model.source: {name} cannot be trained here ({type(error).__name__}: {first})") from error
