"""Rules that change the next-token distribution: an instruction, Self-Debias, DExperts, GeDi.

Letters for shapes: B prompts, Q query tokens, T response tokens, t of them so far, V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from rarlhf.config.baselines import DExpertsParams, GeDiParams, SelfDebiasParams
from rarlhf.decoding.prompts import Prompts
from rarlhf.decoding.rules import DecodingRule, Reader
from rarlhf.models.reference import RefPolicy


class Prompted(DecodingRule):
    """An instruction before each prompt; the response belongs to the prompt alone, and so do score and KL."""

    def __init__(self, instruction: Sequence[int]) -> None:
        self.instruction = list(instruction)

    def asked(self, prompts: Prompts) -> Prompts:
        """The prompts behind the instruction."""
        return prompts.behind(self.instruction)


class SelfDebias(DecodingRule):
    """p'(v) proportional to p(v | x) max(exp(-lambda a(v)), floor), with a(v) = max(max_j p(v | d_j, x) - p(v | x), 0).

    d_j are prompts that name an unwanted attribute. Decay 0 is the model itself. Source: Schick et al. 2021,
    arXiv 2103.00453.
    """

    def __init__(self, params: SelfDebiasParams, prefixes: Sequence[Sequence[int]], model: RefPolicy) -> None:
        self.params, self.prefixes, self.model = params, prefixes, model

    def processors(self, prompts: Prompts, new_tokens: int) -> LogitsProcessorList:
        """One processor, which reads the model once more for each attribute."""
        asked = [prompts.behind(prefix) for prefix in self.prefixes]
        readers = [Reader(self.model, one, new_tokens) for one in asked]
        return LogitsProcessorList([_Debiased(self.params, readers, asked, prompts.tokens.shape[1])])


class _Debiased(LogitsProcessor):
    def __init__(
        self, params: SelfDebiasParams, readers: Sequence[Reader], asked: Sequence[Prompts], width: int
    ) -> None:
        self.params, self.readers, self.asked, self.width = params, readers, asked, width

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(B, V) logits of p'."""
        response = input_ids[:, self.width :]
        biased = torch.full_like(scores, -torch.inf)
        for reader, prompts in zip(self.readers, self.asked, strict=True):
            logits = reader(torch.cat([prompts.tokens, response], dim=1))
            biased = torch.maximum(biased, logits.to(scores.dtype).log_softmax(dim=-1))
        own = scores.log_softmax(dim=-1)
        excess = (biased.exp() - own.exp()).clamp(min=0.0)
        return own + (-self.params.decay * excess).clamp(min=torch.tensor(self.params.floor).log().item())


class DExperts(DecodingRule):
    """softmax(z + alpha (z_expert - z_anti)) over the model's nucleus of probability top_p.

    Tokens outside the nucleus stay out: experts cannot bring them back. An expert that is the model itself leaves the
    anti-expert alone. Alpha 0 is the model's nucleus. Source: Liu et al. 2021, arXiv 2105.03023.
    """

    def __init__(self, params: DExpertsParams, expert: RefPolicy, anti_expert: RefPolicy) -> None:
        self.params, self.models = params, (expert, anti_expert)

    def processors(self, prompts: Prompts, new_tokens: int) -> LogitsProcessorList:
        """One processor with the caches of both experts."""
        readers = [Reader(model, prompts, new_tokens) for model in self.models]
        return LogitsProcessorList([_Steered(self.params, *readers)])


class _Steered(LogitsProcessor):
    def __init__(self, params: DExpertsParams, expert: Reader, anti_expert: Reader) -> None:
        self.params, self.expert, self.anti_expert = params, expert, anti_expert

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(B, V) logits, minus infinity outside the nucleus."""
        difference = self.expert(input_ids) - self.anti_expert(input_ids)
        return nucleus(scores, self.params.top_p) + self.params.alpha * difference


def nucleus(logits: Tensor, top_p: float) -> Tensor:
    """(B, V) logits with minus infinity outside the smallest set of most likely tokens that has probability top_p."""
    if top_p >= 1:
        return logits
    ordered, order = logits.sort(dim=-1, descending=True)
    probabilities = ordered.softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities
    outside = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, before >= top_p)
    return logits.masked_fill(outside, -torch.inf)


class GeDi(DecodingRule):
    """Next-token logits log p(v | x) + omega log P(wanted | response so far, v), with unlikely classes removed.

    P(class | y) is by Bayes' rule from two language models of the classes: its logit is scale times the mean
    log-probability of the response's tokens, plus the bias. Tokens are removed from the lowest P(wanted | .) on, as
    long as their probability together is below `remove` and their own P(wanted | .) is below `keep_above`. Omega 0 with
    `remove` 0 is the model itself. Source: Krause et al. 2020, arXiv 2009.06367.
    """

    def __init__(self, params: GeDiParams, wanted: RefPolicy, unwanted: RefPolicy) -> None:
        self.params, self.models = params, (wanted, unwanted)

    def processors(self, prompts: Prompts, new_tokens: int) -> LogitsProcessorList:
        """One processor with the caches of both language models."""
        readers = [Reader(model, prompts, new_tokens) for model in self.models]
        return LogitsProcessorList([_Classified(self.params, readers)])


class _Classified(LogitsProcessor):
    def __init__(self, params: GeDiParams, readers: Sequence[Reader]) -> None:
        self.params, self.readers = params, readers
        self.totals: Tensor | None = None  # (2, B) log-probability of the response so far under each class
        self.latest: Tensor | None = None  # (2, B, V) log-probabilities that the last token was drawn after
        self.count = 0  # t

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(B, V) logits, minus infinity for removed tokens."""
        token = input_ids[:, -1:]
        logits = [reader(input_ids).to(scores.dtype) for reader in self.readers]
        now = torch.stack([one.log_softmax(dim=-1) for one in logits])
        if self.totals is None or self.latest is None:
            self.totals = now.new_zeros(now.shape[:2])
        else:
            self.totals = self.totals + self.latest.gather(2, token.expand(2, -1, -1)).squeeze(2)
        self.latest = now
        self.count += 1
        return self._weighed(scores, self.class_logprobs(self.totals, now))

    def class_logprobs(self, totals: Tensor, now: Tensor) -> Tensor:
        """(B, V) log P(wanted | response so far, v).

        Args:
            totals: (2, B) log-probability of the response so far under each class.
            now: (2, B, V) log-probabilities of each next token under each class.
        """
        logits = self.params.scale * (totals.unsqueeze(2) + now) / self.count
        logits[0] += self.params.bias
        return logits.log_softmax(dim=0)[0]

    def _weighed(self, scores: Tensor, wanted: Tensor) -> Tensor:
        logits = scores.log_softmax(dim=-1) + self.params.omega * wanted
        ordered, order = wanted.sort(dim=-1)
        cumulative = logits.softmax(dim=-1).gather(1, order).cumsum(dim=-1)
        removed = (cumulative < self.params.remove) & (ordered.exp() < self.params.keep_above)
        return logits.masked_fill(torch.zeros_like(removed).scatter(1, order, removed), -torch.inf)
