"""The rule of a model that has its own way of being decoded (`rarlhf.models.way`), with any other rule on top of it."""

from pathlib import Path

from torch import Tensor
from transformers import LogitsProcessorList, SuppressTokensLogitsProcessor

from rarlhf.decoding.prompts import Prompts
from rarlhf.decoding.rules import DecodingRule
from rarlhf.models.episodes import Episodes
from rarlhf.models.way import Way, own_way


def rule_of(folder: Path, rule: DecodingRule | None = None) -> DecodingRule | None:
    """The rule by which the model in a folder is decoded, with another rule on top of its own way.

    Args:
        folder: of the model.
        rule: what is asked for besides; None for sampling.
    Returns: `rule` itself for a model that is sampled as it is.
    """
    way = own_way(folder)
    return Conditioned(way, rule) if any(way) else rule


class Conditioned(DecodingRule):
    """A model's own way of decoding, with another rule on top of it.

    The response belongs to the prompt alone, and so do score and KL.
    """

    def __init__(self, way: Way, rule: DecodingRule | None = None) -> None:
        self.way, self.rule = way, rule or DecodingRule()
        self.draws = self.rule.draws

    def processors(self, prompts: Prompts, new_tokens: int) -> LogitsProcessorList:
        """First the model's own distribution, over the tokens that it may draw; then what the other rule does to it."""
        others = self.rule.processors(prompts, new_tokens)
        if not self.way.never:
            return others
        return LogitsProcessorList([SuppressTokensLogitsProcessor(self.way.never, prompts.tokens.device), *others])

    def asked(self, prompts: Prompts) -> Prompts:
        """What the other rule asks, behind the model's own tokens."""
        return self.rule.asked(prompts).behind(self.way.before)

    def value(self, episodes: Episodes) -> Tensor:
        """(B,) as the other rule."""
        return self.rule.value(episodes)

    def log_acceptance(self, values: Tensor) -> Tensor:
        """(B,) as the other rule."""
        return self.rule.log_acceptance(values)
