"""The row: one labelled text, the same from every source."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """One labelled text."""

    text: str  # the whole text
    label: int  # 1 = the wanted class (positive, non-toxic), 0 = the unwanted one
    prompt: str | None = None  # the first part of the text, where the source names one
    toxicity: float | None = None  # toxicity of the prompt in [0, 1], where the source has it

    def record(self) -> dict[str, str | int | float]:
        """The row as a JSON object, without the fields that are not there."""
        fields: dict[str, str | int | float | None] = {
            "text": self.text,
            "label": self.label,
            "prompt": self.prompt,
            "toxicity": self.toxicity,
        }
        return {name: value for name, value in fields.items() if value is not None}
