"""Sections of params.yaml on baselines: rules of decoding, and trainings besides PPO and fits.

A section holds what an entry of `methods` (`tuned`, `decoded`, `guided`, `headed`, `heads`) takes unless it names it
itself.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field

from rarlhf.config.fields import (
    Batch,
    Count,
    Epochs,
    NonNegative,
    Number,
    Open01,
    Positive,
    Section,
    Share,
    Steps,
)

Draws = Annotated[int, Field(ge=1, le=1000)]  # all random numbers are made at once
Texts = Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1, max_length=20)]


class PromptedParams(Section):
    """An instruction before each prompt."""

    instruction: Annotated[str, Field(min_length=1)]


class BestOfNParams(Section):
    """The best of n draws by the score."""

    n: Draws


class RejectionParams(Section):
    """The first of at most n draws whose score reaches a threshold."""

    n: Draws
    threshold: Literal["plan"] | Number


class SoftRejectionParams(Section):
    """The first of at most n draws that is accepted with probability exp(-(eta - s)+ / (alpha kl_coef))."""

    n: Draws
    alpha: Share
    eta: Literal["plan"] | Number
    kl_coef: Literal["plan"] | Positive


class SelfDebiasParams(Section):
    """Less of the tokens that prompts which name an unwanted attribute make more likely."""

    template: Annotated[str, Field(pattern=r"\{\}")]
    attributes: Texts
    decay: NonNegative
    floor: Open01


class DExpertsParams(Section):
    """The difference of an expert's and an anti-expert's logits, added to the model's."""

    alpha: NonNegative
    top_p: Share


class GeDiParams(Section):
    """The probability of the wanted class given the text so far, by Bayes' rule from two language models."""

    omega: NonNegative
    scale: Positive
    bias: Number
    remove: Annotated[Number, Field(ge=0, lt=1)]
    keep_above: Annotated[Number, Field(ge=0, le=1)]


class NADOParams(Section):
    """The head's R(prefix, token) to a power, times the model's probability."""

    factor: NonNegative


class RECTParams(Section):
    """The head's R(prefix, token), less a margin, as a cap of the model's probability."""

    eps: Annotated[Number, Field(ge=0, lt=1)]


class DecodingParams(Section):
    """The rules of decoding, each with its own section."""

    prompted: PromptedParams
    best_of_n: BestOfNParams
    rejection: RejectionParams
    soft_rejection: SoftRejectionParams
    self_debias: SelfDebiasParams
    dexperts: DExpertsParams
    gedi: GeDiParams
    nado: NADOParams
    rect: RECTParams


class SupervisedParams(Section):
    """Fine-tuning of the base model as section `sft` says, on other texts."""

    texts: Literal["above", "below", "wanted", "unwanted", "all"]
    quantile: Annotated[Number, Field(ge=0, lt=1)]


class QuarkParams(Section):
    """Likelihood of answers given the quantile of their score (Quark)."""

    rounds: Steps
    prompts: Count
    steps: Steps
    quantiles: Annotated[int, Field(ge=1, le=100)]
    batch_size: Batch
    micro_batch_size: Batch
    lr: Open01
    warmup: Annotated[Number, Field(ge=0, lt=1)]
    kl_coef: NonNegative
    entropy_coef: NonNegative


class RegularisedParams(Section):
    """Fine-tuning on all rows with a penalty towards a constrained distribution."""

    penalty: NonNegative
    rounds: Steps
    lag: Literal[0, 1]
    target: Literal["current", "copy"]
    prompts: Count
    samples: Count
    related: Literal["all", "prompt", "label"]
    related_quantile: Share
    head: dict[str, Any]


class TuningParams(Section):
    """The trainings of `methods.tuned`, each with its own section."""

    supervised: SupervisedParams
    quark: QuarkParams
    regularised: RegularisedParams


class HeadParams(Section):
    """A head R(prefix, token) on the frozen SFT model, and what it learns: the expected label of the whole answer."""

    labels: Literal["hard", "soft"]
    quantile: Annotated[Number, Field(ge=0, lt=1)]
    alpha: Share
    eta: Literal["plan"] | Number
    kl_coef: Literal["plan"] | Positive
    layers: Annotated[int, Field(ge=0, le=48)]
    heads: Annotated[int, Field(ge=1, le=8192)]
    init_std: Open01
    consistency: NonNegative
    epochs: Epochs
    batch_size: Batch
    micro_batch_size: Batch
    lr: Open01
    warmup: Annotated[Number, Field(ge=0, lt=1)]
    weight_decay: NonNegative


class HeadOfTraining(Section):
    """The head of a training, as its errors name it."""

    head: HeadParams


DECODED = ("prompted", "best_of_n", "rejection", "soft_rejection", "self_debias")  # rules that read one model
GUIDED = ("dexperts", "gedi")  # rules that read an expert and an anti-expert too
HEADED = ("nado", "rect")  # rules that read a head of `methods.heads`, and the SFT model that it stands on
CHOOSING = ("best_of_n", "rejection", "soft_rejection")  # rules that score what they draw
CONDITIONED = ("prompted", *CHOOSING)  # rules for any model, also for one that is sampled behind a token of its own
OWN_KEYS: Mapping[str, tuple[str, ...]] = {  # what an entry says besides changes: the rule or training, and its models
    "tuned": ("by",),
    "decoded": ("rule", "of"),
    "guided": ("rule", "of", "expert", "anti_expert"),
    "headed": ("rule", "of", "head"),
}
CHOICES: Mapping[str, tuple[str, ...]] = {
    "decoded": DECODED,
    "guided": GUIDED,
    "headed": HEADED,
    "tuned": ("supervised", "quark", "regularised"),
}


class Chosen(NamedTuple):
    """An entry of `methods.decoded`, `methods.guided`, `methods.headed` or `methods.tuned`, read."""

    kind: str  # which rule or training
    settings: Section  # its section with the entry's changes
    models: Mapping[str, str]  # of, expert, anti_expert: names of methods; empty for a training
    head: str | None = None  # name in `methods.heads` of the head that a rule reads; None for one that reads none


def read_models(entry: Mapping[str, Any]) -> list[str]:
    """The methods whose models an entry of `methods` names; none of a training."""
    return [entry[key] for key in OWN_KEYS["guided"][1:] if key in entry]


def chosen(of: str, entry: Mapping[str, Any], sections: DecodingParams | TuningParams) -> Chosen:
    """Reads an entry.

    Args:
        of: decoded, guided, headed or tuned.
        entry: `rule` and the models, or `by`, and changes of the section.
        sections: section `decoding` or `tuning`.
    Raises: KeyError for a key that is missing; pydantic.ValidationError for a bad change.
    """
    own = OWN_KEYS[of]
    kind = entry[own[0]]
    section: Section = getattr(sections, kind)
    changes = {key: value for key, value in entry.items() if key not in own}
    settings = type(section).model_validate({**section.model_dump(), **changes})
    models = {key: entry[key] for key in own[1:] if key != "head"}
    return Chosen(kind, settings, models, entry["head"] if "head" in own else None)


def with_head(settings: RegularisedParams, head: HeadParams) -> RegularisedParams:
    """The settings with the whole of their head in the place of what differs from section `head`.

    Raises: pydantic.ValidationError if a change is no key of the section, or its value is not allowed.
    """
    whole = HeadOfTraining.model_validate({"head": {**head.model_dump(), **settings.head}})
    return settings.model_copy(update=whole.model_dump(mode="json"))
