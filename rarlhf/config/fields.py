"""What the sections of params.yaml are made of: the types of their values, and the base of their models."""

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def _number_from_text(value: object) -> object:
    """Turns text such as `1e-05` into a number; YAML 1.1 writers leave it as text."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


Number = Annotated[float, BeforeValidator(_number_from_text)]
Positive = Annotated[Number, Field(gt=0)]
NonNegative = Annotated[Number, Field(ge=0)]
Share = Annotated[Number, Field(gt=0, le=1)]
Open01 = Annotated[Number, Field(gt=0, lt=1)]
# Upper limits are far above any real run. They catch typing errors and keep sums and allocations in range.
Count = Annotated[int, Field(ge=1, le=1_000_000_000)]  # rows, texts, tokens
CountOrZero = Annotated[int, Field(ge=0, le=1_000_000_000)]
Steps = Annotated[int, Field(ge=1, le=1_000_000)]  # done one after another
Batch = Annotated[int, Field(ge=1, le=1_000_000)]  # done at once
Epochs = Annotated[Number, Field(gt=0, le=10_000)]
Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]


class Section(BaseModel):
    """A section of params.yaml: frozen, and closed to keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
