"""From a rule's name and settings to the rule, with the models and the scorer that it reads."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from rarlhf.config.baselines import (
    BestOfNParams,
    DExpertsParams,
    GeDiParams,
    NADOParams,
    PromptedParams,
    RECTParams,
    RejectionParams,
    SelfDebiasParams,
    SoftRejectionParams,
)
from rarlhf.config.errors import UserError
from rarlhf.config.fields import Section
from rarlhf.decoding.draws import BestOfN, Rejection, ScoreOf, SoftRejection
from rarlhf.decoding.headed import NADO, RECT, Headed
from rarlhf.decoding.reweighted import DExperts, GeDi, Prompted, SelfDebias
from rarlhf.decoding.rules import DecodingRule
from rarlhf.models.policy import logits_size
from rarlhf.models.reference import RefPolicy


class Parts(NamedTuple):
    """What a rule may read."""

    tokenizer: PreTrainedTokenizerBase
    model: RefPolicy  # that is decoded
    score: ScoreOf | None = None  # None: no scorer is there
    expert: RefPolicy | None = None
    anti_expert: RefPolicy | None = None
    headed: Headed | None = None


def build_rule(settings: Section, parts: Parts) -> DecodingRule:
    """The rule that the settings are of.

    Raises: UserError if a part is missing, an expert or a head has another vocabulary, or a number is still `plan`.
    """
    make = RULES.get(type(settings))
    if make is None:
        raise ValueError(f"no decoding rule has settings of the kind {type(settings).__name__}")
    return make(settings, parts)


def _prompted(settings: PromptedParams, parts: Parts) -> DecodingRule:
    return Prompted(_ids(parts.tokenizer, settings.instruction))


def _self_debias(settings: SelfDebiasParams, parts: Parts) -> DecodingRule:
    named = [settings.template.replace("{}", attribute) for attribute in settings.attributes]
    return SelfDebias(settings, [_ids(parts.tokenizer, text) for text in named], parts.model)


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> Sequence[int]:
    """The text's tokens, without the end that some tokenizers add."""
    ids = list(tokenizer(text)["input_ids"])
    return ids[:-1] if ids[-1:] == [tokenizer.eos_token_id] else ids


def _scorer(parts: Parts) -> ScoreOf:
    if parts.score is None:
        raise UserError("this rule chooses among draws by their score, so it needs a scorer")
    return parts.score


def _experts(parts: Parts) -> tuple[RefPolicy, RefPolicy]:
    """Raises: UserError if there is none, or its logits are of another vocabulary."""
    if parts.expert is None or parts.anti_expert is None:
        raise UserError("this rule reads an expert and an anti-expert, so it needs two further models")
    sizes = []
    for model in (parts.model, parts.expert, parts.anti_expert):
        with model() as lm:
            sizes.append(logits_size(lm))
    if len(set(sizes)) > 1:
        raise UserError(
            f"the model, the expert and the anti-expert have logits for {', '.join(map(str, sizes))} tokens; take "
            "models of one vocabulary"
        )
    return parts.expert, parts.anti_expert


def _headed(parts: Parts) -> Headed:
    """Raises: UserError if there is none, or it is of another vocabulary than the model's."""
    if parts.headed is None:
        raise UserError("this rule reads a head, so it needs one of methods.heads and the SFT model")
    with parts.model() as lm:
        size, of_head = logits_size(lm), logits_size(parts.headed.head)
    if size != of_head:
        raise UserError(
            f"the model has logits for {size} tokens, and the head for {of_head}: name another model in `of`"
        )
    return parts.headed


RULES: Mapping[type[Section], Callable[[Any, Parts], DecodingRule]] = {
    PromptedParams: _prompted,
    SelfDebiasParams: _self_debias,
    BestOfNParams: lambda settings, parts: BestOfN(settings, _scorer(parts)),
    RejectionParams: lambda settings, parts: Rejection(settings, _scorer(parts)),
    SoftRejectionParams: lambda settings, parts: SoftRejection(settings, _scorer(parts)),
    DExpertsParams: lambda settings, parts: DExperts(settings, *_experts(parts)),
    GeDiParams: lambda settings, parts: GeDi(settings, *_experts(parts)),
    NADOParams: lambda settings, parts: NADO(settings, _headed(parts)),
    RECTParams: lambda settings, parts: RECT(settings, _headed(parts)),
}
