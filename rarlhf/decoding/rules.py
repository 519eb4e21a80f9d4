"""The interface of decoding rules: how the distribution is made that each token is drawn from, and which draw is kept.

A decoding rule continues a prompt in another way than sampling from one model. It can act in two places:

1. It changes the next-token logits of a batch of prefixes, by transformers' `LogitsProcessorList`. A processor may read
   further models: a `Reader` is such a model with its own cache, which reads each token once.
2. It draws several responses to each prompt and keeps one (best of n, rejection).

Letters for shapes: B prompts, Q query tokens, T response tokens, V vocabulary.
"""

from collections.abc import Sequence
from math import log
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import LogitsProcessorList

from rarlhf.decoding.eager import EagerDecoder
from rarlhf.models.episodes import Episodes
from rarlhf.models.policy import logits_of
from rarlhf.models.reference import RefPolicy


class Prompts(NamedTuple):
    """Queries, padded on the left to one width."""

    tokens: Tensor  # (B, Q) int64
    mask: Tensor  # (B, Q) bool, True = real token

    def rows(self, index: Tensor | slice) -> "Prompts":
        """The prompts at `index`, in that order."""
        return Prompts(self.tokens[index], self.mask[index])


class DecodingRule:
    """A rule that changes nothing; another one is a subclass with its own `processors`, or `draws` and `choose`."""

    draws = 1  # responses that are drawn to each prompt, of which one is kept

    def processors(self, prompts: Prompts, new_tokens: int) -> LogitsProcessorList:
        """What turns the model's logits into the rule's, made again for each batch.

        Each processor gets all tokens so far (B, Q + t), padding included, and logits (B, V); it returns logits (B, V).
        Temperature and shortest length are applied to what the last one returns.

        Args:
            prompts: the batch.
            new_tokens: T, the most tokens that will be drawn: the room that a further model's cache needs.
        """
        return LogitsProcessorList()

    def choose(self, drawn: Sequence[Episodes]) -> Tensor:
        """(B,) int64, the index of the draw that is kept of each prompt; asked only where `draws` is above 1."""
        raise NotImplementedError(f"{type(self).__name__} draws {self.draws} responses and has no `choose`")

    @property
    def choice_kl(self) -> float:
        """At most how many nats `choose` adds to the KL of a kept response, in the mean over responses.

        Choosing one of n draws makes a response at most n times as likely, so it adds at most log n. Best of n adds
        at most log n - (n - 1) / n (Beirami et al. 2024, arXiv 2401.01879).
        """
        return log(self.draws)


class Reader:
    """A further model of a rule, with its own cache: gives the next-token logits of a batch as it grows."""

    def __init__(self, model: RefPolicy, prompts: Prompts, new_tokens: int) -> None:
        self.model = model
        with model() as lm:
            self.decoder = EagerDecoder(lm, prompts.mask, new_tokens)

    @torch.no_grad()
    def __call__(self, tokens: Tensor) -> Tensor:
        """(B, V) logits after all `tokens` (B, Q + t) so far; only those not read yet go through the model."""
        with self.model() as lm:
            return logits_of(lm, self.decoder(tokens[:, self.decoder.seen :]))[:, 0]
