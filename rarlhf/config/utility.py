"""Section `utility` of params.yaml: what models can still do beside the task that they were tuned for."""

from typing import Annotated

from pydantic import Field

from rarlhf.config.fields import Batch, Count, CountOrZero, Positive, Section, Seed


class ClassificationParams(Section):
    """A linear classifier on a model's hidden states."""

    rows: CountOrZero
    test_rows: Count
    tokens: Annotated[int, Field(ge=1, le=4096)]
    batch_size: Batch
    penalty: Positive
    seed: Seed


class UtilityParams(Section):
    """The classifier, and tasks of lm-evaluation-harness."""

    classification: ClassificationParams
    tasks: list[Annotated[str, Field(min_length=1)]]
    files: dict[Annotated[str, Field(min_length=1)], Annotated[str, Field(min_length=1)]]
    fewshot: dict[Annotated[str, Field(min_length=1)], Annotated[int, Field(ge=0, le=1000)]]
    limit: Count | None
    batch_size: Batch
