"""Model cards: the README.md in a model's folder, which says what it is, how it came about and how to load it.

A card holds nothing but what decides the model's own bytes: no times, no runs, no paths of a machine. How good the
model is, is measured later; `rarlhf.evaluation.cards` writes cards with results.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import ModelCard, ModelCardData
from jinja2 import Environment, StrictUndefined

from rarlhf.config.function_names import PREFIX, is_function
from rarlhf.config.methods import label_of
from rarlhf.config.params import DataParams, ModelParams, RewardParams, Section
from rarlhf.messages.markdown import code, escaped
from rarlhf.risk.measures import deciding_values

NAME = "README.md"
LICENCE = "apache-2.0"  # of what is the project's own
MAIN: Mapping[str, tuple[str, ...]] = {  # what a card shows of a section; all of it where the section is not named
    "model": ("adapter", "quantization", "dtype"),
    "sft": ("tokens", "epochs", "batch_size", "lr"),
    "ppo": ("iterations", "batch_size", "epochs", "lr", "max_new_tokens", "min_new_tokens", "temperature"),
    "reward": ("label", "sign", "max_length"),
}


class Base(NamedTuple):
    """The base model, as every card that stands on it tells."""

    text: str  # Markdown
    name: str | None  # on the hub
    free: bool  # nothing of others went into it


@dataclass(frozen=True)
class Card:
    """What a card is made of."""

    method: str  # as in params.yaml
    seed: int | None  # None: the card speaks of all seeds, or the model has none
    base: Base
    data: DataParams
    model: ModelParams
    sections: Mapping[str, Section]  # that decided the training, by name
    preset: str | None = None
    results: str | None = None  # Markdown

    def text(self) -> str:
        """The card in Markdown with its YAML header; equal cards give equal text."""
        environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
        environment.filters["escaped"] = escaped
        template = environment.from_string(
            resources.files("rarlhf.evaluation").joinpath("card.md.j2").read_text("utf-8")
        )
        body = template.render(
            card=self,
            title=label_of(self.method),
            adapter=self._adapter,
            data_text=data_text(self.data),
            reward_text=reward_text(self.sections["reward"]) if "reward" in self.sections else None,  # type: ignore[arg-type]
            measure=getattr(self.sections.get("risk"), "measure", None),
            params=list(self._main_params()),
            free=self._free,
        )
        return str(ModelCard(f"---\n{self._header().to_yaml()}\n---\n\n{body}"))

    def write(self, folder: Path) -> None:
        """Writes README.md into the model's folder."""
        (folder / NAME).write_text(self.text(), encoding="utf-8", newline="\n")

    @property
    def _adapter(self) -> bool:
        return self.method != "base" and self.model.adapter == "lora"

    @property
    def _free(self) -> bool:
        """Whether nothing of others went into the model."""
        return self.data.source == "generator" and self.base.free

    def _header(self) -> ModelCardData:
        return ModelCardData(
            license=LICENCE if self._free else "other",
            license_name=None if self._free else "that-of-base-and-data",
            language="en" if self.data.source == "generator" else None,
            library_name="peft" if self._adapter else "transformers",
            pipeline_tag="text-generation",
            base_model=self.base.name,
            datasets=[self.data.name] if self.data.source == "hub" and self.data.name else None,
            tags=["rarlhf", *(["lora"] if self._adapter else []), *([self.method] if self.method != "base" else [])],
            base_text=self.base.text,
        )

    def _main_params(self) -> Iterator[tuple[str, str]]:
        values: dict[str, Any] = {"model": self.model, **self.sections} if self.method != "base" else {}
        for name, section in values.items():
            whole = deciding_values(section) if name == "risk" else type(section).model_fields
            for key in MAIN.get(name, tuple(whole)):
                yield f"{name}.{key}", f"{getattr(section, key)}"
        if self._adapter:
            yield "model.lora.r", f"{self.model.lora.r}"
            yield "model.lora.alpha", f"{self.model.lora.alpha:g}"


def base_of_params(params: ModelParams, data: DataParams) -> Base:
    """The base model as sections `model` and `data` give it."""
    if params.source == "scratch":
        shape = params.scratch
        return Base(
            f"a GPT-2-shaped model ({shape.layers} layers of width {shape.width}, context {shape.context}), trained "
            "from nothing on the training rows",
            None,
            data.source == "generator",
        )
    if _local(params.source):
        return Base("a model that was given as a local folder", None, False)
    return Base(_on_hub(params.source, params.revision), params.source, False)


def base_of_folder(folder: Path) -> Base:
    """The base model of the model in `folder`, as the card in it tells."""
    if not (folder / NAME).is_file():
        return Base("not described", None, False)
    header = ModelCard.load(folder / NAME).data
    return Base(header.base_text, header.base_model, header.license == LICENCE)


def data_text(data: DataParams) -> str:
    """Where the rows come from, without a path."""
    if data.source == "generator":
        return "text of this project's own generator: short reviews of a world whose best answers are known"
    if data.source == "hub":
        config = f", configuration {escaped(data.config)}" if data.config else ""
        return _on_hub(str(data.name), data.revision) + config
    return "rows that were given as files"


def reward_text(reward: RewardParams) -> str:
    """What scored the texts, without a path."""
    others = [f", plus {other.weight:g} times {_scorer_text(other.source, other.revision)}" for other in reward.others]
    return _scorer_text(reward.source, reward.revision) + "".join(others)


def _scorer_text(source: str, revision: str | None) -> str:
    if source == "scratch":
        return "a classifier trained on the same rows"
    if is_function(source):
        return f"the function {code(source.removeprefix(PREFIX))}"
    if _local(source):
        return "a classifier that was given as a local folder"
    return _on_hub(source, revision)


def _local(source: str) -> bool:
    return Path(source).is_absolute() or source.startswith(".") or Path(source).exists()


def _on_hub(name: str, revision: str | None) -> str:
    return f"{code(name)} of the Hugging Face hub" + (f", revision {escaped(revision)}" if revision else "")
