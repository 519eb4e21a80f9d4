"""The row: one text with its label, if it has one; the same form for every source."""

from dataclasses import dataclass
from pathlib import Path

from rarlhf.system.files import read_jsonl


@dataclass(frozen=True, slots=True)
class Row:
    """One text."""

    text: str  # the whole text; only the prompt if the source has nothing else
    label: int | None = None  # 1 = the wanted class (positive, non-toxic), 0 = the unwanted one; None: not known
    prompt: str | None = None  # the first part of the text, if the source names it
    toxicity: float | None = None  # toxicity of the prompt in [0, 1], if the source has it
    chance: float | None = None  # probability that the label is 1, if the source knows it

    def record(self) -> dict[str, str | int | float]:
        """The row as a JSON object, without fields that are None."""
        fields: dict[str, str | int | float | None] = {
            "text": self.text,
            "label": self.label,
            "prompt": self.prompt,
            "toxicity": self.toxicity,
            "chance": self.chance,
        }
        return {name: value for name, value in fields.items() if value is not None}


def read_rows(path: Path) -> list[Row]:
    """The rows of a file in data/raw."""
    return [Row(**record) for record in read_jsonl(path)]
