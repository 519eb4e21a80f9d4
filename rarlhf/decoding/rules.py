"""The interface of decoding rules: how the distribution is made that each token is drawn from, and which draw is kept.

A decoding rule continues a prompt in another way than sampling from one model. It can act in two places:

1. It changes the next-token logits of a batch of prefixes, by transformers' `LogitsProcessorList`. A processor may read
   further models: a `Reader` is such a model with its own cache, which reads each token once.
2. It draws several responses to each prompt and keeps one (best of n, rejection).

Letters for shapes: B prompts, Q query tokens, T response tokens, V vocabulary.
"""

import torch
from torch import Tensor
from transformers import LogitsProcessorList

from rarlhf.decoding.eager import EagerDecoder
from rarlhf.decoding.prompts import Prompts
from rarlhf.models.episodes import Episodes
from rarlhf.models.policy import logits_of
from rarlhf.models.reference import RefPolicy


class DecodingRule:
    """A rule that changes nothing; another one is a subclass with its own `processors`, `asked` or `value`.

    A rule that chooses has `draws` above 1 and its own `value`. The first draw that is accepted, by chance with
    `log_acceptance`, is kept; if none is, the one of highest value.
    """

    draws = 1  # responses that are drawn to each prompt at most, of which one is kept
    by_chance = False  # whether responses are accepted with probabilities between 0 and 1
    reshapes = True  # whether a single draw comes from another distribution than the model's own

    def processors(self, prompts: Prompts, new_tokens: int) -> LogitsProcessorList:
        """What turns the model's logits into the rule's, made again for each batch.

        Each processor gets all tokens so far (B, Q + t), padding included, and logits (B, V); it returns logits (B, V).
        The end of text has the logit minus infinity as long as it may not be drawn. Temperature is applied to what the
        last one returns.

        Args:
            prompts: the batch, as `asked` gives it.
            new_tokens: T, the most tokens that will be drawn: the room that a further model's cache needs.
        """
        return LogitsProcessorList()

    def asked(self, prompts: Prompts) -> Prompts:
        """What the model is given in place of the prompts; the response belongs to the prompts themselves."""
        return prompts

    def value(self, episodes: Episodes) -> Tensor:
        """(B,) by which responses are chosen, higher is better; asked only where `draws` is above 1."""
        raise NotImplementedError(f"{type(self).__name__} draws {self.draws} responses and has no `value`")

    def log_acceptance(self, values: Tensor) -> Tensor:
        """(B,) logarithms of the probabilities with which responses of these values are accepted."""
        return torch.full_like(values, -torch.inf)


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
