"""Rules that read a head R(prefix, token) on the SFT model: NADO multiplies by it, RECT caps by it.

The head has learnt the states of the SFT model, so it reads that model, whatever model is decoded.

Letters for shapes: B prompts, Q query tokens, T response tokens, t of them so far, V vocabulary.
"""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel

from rarlhf.config.baselines import NADOParams, RECTParams
from rarlhf.config.errors import UserError
from rarlhf.decoding.eager import EagerDecoder, roomy_cache
from rarlhf.decoding.prompts import Prompts
from rarlhf.decoding.rules import DecodingRule
from rarlhf.models.head import head_inputs, head_logits, load_head
from rarlhf.models.reference import RefPolicy

LOWEST_CAP = 1e-7  # RECT: least probability that a token is allowed


class Headed(NamedTuple):
    """A head with the model that it reads, and the temperature at which that model's answers were drawn."""

    sft: RefPolicy
    head: PreTrainedModel
    temperature: float


def open_headed(folder: Path, sft: RefPolicy, temperature: float) -> Headed:
    """The head in a folder, on the SFT model.

    Raises: UserError as `load_head`.
    """
    with sft() as lm:
        return Headed(sft, load_head(folder, lm), temperature)


class HeadReader:
    """The logits of R for a batch as it grows; model and head have a cache each and read each token once."""

    def __init__(self, headed: Headed, prompts: Prompts, new_tokens: int) -> None:
        """Raises: UserError if a prompt with `new_tokens` is longer than the texts that the head has learnt from."""
        longest, known = int(prompts.mask.sum(dim=1).max()), int(headed.head.config.n_positions)
        if longest + new_tokens > known:
            raise UserError(
                f"the head knows texts of {known} tokens, and {longest} of the prompt with {new_tokens} new ones are "
                "more: take fewer, or shorten the prompt"
            )
        self.headed = headed
        with headed.sft() as lm:
            self.decoder = EagerDecoder(lm, prompts.mask, new_tokens)
        layers, room = headed.head.config.n_layer, prompts.mask.shape[1] + new_tokens
        self.cache = roomy_cache(headed.head, room) if layers else None  # a linear head attends to nothing

    @torch.no_grad()
    def __call__(self, tokens: Tensor) -> Tensor:
        """(B, V) logits of R(tokens so far, v), after `tokens` (B, Q + t)."""
        start, seen = self.decoder.seen, tokens.shape[1]
        with self.headed.sft() as lm:
            inputs = head_inputs(lm, self.decoder.states(tokens[:, start:]), tokens[:, start:])
        options: dict[str, Any] = {"position_ids": self.decoder.positions[:, start:seen]}
        if self.cache is not None:
            options |= {"past_key_values": self.cache, "use_cache": True}
            options |= {"attention_mask": self.decoder.mask[:, :seen]} if self.decoder.padded else {}
        return head_logits(self.headed.head, inputs, seen - start - 1, **options)[:, 0]


class NADO(DecodingRule):
    """q(v | x) proportional to p(v | x) R(x, v)^factor, where p is the distribution that is sampled.

    Factor 0 is the model itself. With factor 1 on the SFT model, and R the exact expectation of a label w, whole
    answers have q(y) proportional to p(y) w(y). Source: Meng et al. 2022, arXiv 2205.14219.
    """

    def __init__(self, params: NADOParams, headed: Headed) -> None:
        self.params, self.headed = params, headed

    def processors(self, prompts: Prompts, new_tokens: int) -> LogitsProcessorList:
        """One processor, which reads the SFT model and the head."""
        return LogitsProcessorList([_Multiplied(self.params, self.headed, prompts, new_tokens)])


class _Multiplied(LogitsProcessor):
    def __init__(self, params: NADOParams, headed: Headed, prompts: Prompts, new_tokens: int) -> None:
        self.weight = params.factor * headed.temperature  # the logits are divided by the temperature afterwards
        self.reader = HeadReader(headed, prompts, new_tokens)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(B, V) logits of q."""
        return scores + self.weight * logsigmoid(self.reader(input_ids)).to(scores.dtype)


class RECT(DecodingRule):
    """p(v | x) is at most R(x, v) - eps, which is kept in [1e-7, 1]; done twice, since normalising lifts the rest.

    Here R stands for 1 + Q of the original, where Q in [-1, 0] is minus the expected harm after the token. With R = 1
    and eps 0 it is the model itself. Source: RECT (Cao et al. 2023, arXiv 2302.14003) by its code.
    """

    def __init__(self, params: RECTParams, headed: Headed) -> None:
        self.params, self.headed = params, headed

    def processors(self, prompts: Prompts, new_tokens: int) -> LogitsProcessorList:
        """One processor, which reads the SFT model and the head."""
        return LogitsProcessorList([_Capped(self.params, self.headed, prompts, new_tokens)])


class _Capped(LogitsProcessor):
    def __init__(self, params: RECTParams, headed: Headed, prompts: Prompts, new_tokens: int) -> None:
        self.params, self.temperature = params, headed.temperature
        self.reader = HeadReader(headed, prompts, new_tokens)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(B, V) logits of the capped distribution."""
        caps = (self.reader(input_ids).sigmoid() - self.params.eps).clamp(LOWEST_CAP, 1.0).log().to(scores.dtype)
        shaped = scores / self.temperature
        for _ in range(2):
            shaped = torch.minimum(shaped, caps + shaped.logsumexp(dim=-1, keepdim=True))
        return shaped * self.temperature
