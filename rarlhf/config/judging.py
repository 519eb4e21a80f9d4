"""Sections of params.yaml on what judges texts: the reward model, and the judges that no training sees."""

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from rarlhf.config.fields import Batch, Count, Epochs, NonNegative, Number, Open01, Section, Seed
from rarlhf.config.function_names import is_function

NO_JUDGE = "none"  # source of a judge that is left out
BASE = "base"  # source of the language model that judges: the base model
QUESTION_PARTS = ("{prompt}", "{first}", "{second}")  # what `judge.preference.instruction` holds, each once


class ScratchScorerParams(Section):
    """Shape and training of a DistilBERT-shaped classifier that is trained from scratch."""

    vocab_size: Annotated[int, Field(ge=40, le=65536)]
    layers: Annotated[int, Field(ge=1, le=24)]
    width: Annotated[int, Field(ge=8, le=8192)]
    heads: Annotated[int, Field(ge=1, le=8192)]
    init_std: Open01
    dropout: Annotated[Number, Field(ge=0, lt=1)]
    cut_share: Annotated[Number, Field(ge=0, lt=1)]
    epochs: Epochs
    batch_size: Batch
    lr: Open01
    weight_decay: NonNegative
    seed: Seed


class OtherScorerParams(Section):
    """A further scorer, whose weighted output is added to the score; keys that are left out are null."""

    source: Annotated[str, Field(min_length=1)]
    weight: Number
    revision: str | None = None
    label: str | int | None = None
    output: Literal["logit", "probability"] | None = None
    max_length: Annotated[int, Field(ge=8, le=4096)] | None = None

    @property
    def classifier_keys(self) -> tuple[object, ...]:
        """Values that a classifier needs and a function does not take."""
        return self.label, self.output, self.max_length


class ScorerParams(Section):
    """A scorer of texts: a sequence classifier or a Python function."""

    section: ClassVar[str]  # where in params.yaml it stands
    title: ClassVar[str]  # what messages call it

    source: Annotated[str, Field(min_length=1)]
    revision: str | None
    label: str | int
    output: Literal["logit", "probability"]
    sign: Literal[1, -1]
    max_length: Annotated[int, Field(ge=8, le=4096)]
    batch_size: Batch
    scratch: ScratchScorerParams

    @property
    def further(self) -> Sequence[OtherScorerParams]:
        """Scorers that are added to this one."""
        return ()

    @property
    def functions(self) -> list[str]:
        """The sources that are Python functions."""
        sources = (self.source, *(other.source for other in self.further))
        return [source for source in sources if is_function(source)]


class RewardParams(ScorerParams):
    """The reward model: a scorer, and others added to it."""

    section: ClassVar[str] = "reward"
    title: ClassVar[str] = "reward model"

    others: list[OtherScorerParams]
    watch: list[Literal["code"]]

    @property
    def further(self) -> Sequence[OtherScorerParams]:
        """The scorers of `reward.others`."""
        return self.others


class SecondScorerParams(ScorerParams):
    """A scorer that no training sees."""

    section: ClassVar[str] = "judge.second_scorer"
    title: ClassVar[str] = "second scorer"


class LanguageJudgeParams(Section):
    """The language model under which continuations are measured, and prompts embedded."""

    section: ClassVar[str] = "judge.language_model"  # where in params.yaml it stands

    source: Annotated[str, Field(min_length=1)]
    revision: str | None
    batch_size: Batch


class ToxicityParams(Section):
    """Toxicity as its own field counts it: the probability that one classifier gives to the unwanted class."""

    scorer: Literal["none", "reward", "second_scorer"]
    text: Literal["continuation", "whole"]
    threshold: Open01


class PreferenceParams(LanguageJudgeParams):
    """The language model that says which of two answers to a prompt is better."""

    section: ClassVar[str] = "judge.preference"

    against: Annotated[str, Field(min_length=1)]
    prompts: Count
    instruction: Annotated[str, Field(min_length=1)]


class JudgeParams(Section):
    """What judges the answers in the evaluation, besides the reward model."""

    second_scorer: SecondScorerParams
    language_model: LanguageJudgeParams
    toxicity: ToxicityParams
    preference: PreferenceParams
