"""A model card: what a method's models are, how they were made, how to load them, and what was measured.

A card holds nothing of the machine or of the time that made it. `rarlhf.evaluation.cards` writes the cards of a run.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import ModelCard, ModelCardData
from jinja2 import Environment, StrictUndefined

from rarlhf.config.fields import Section
from rarlhf.config.function_names import PREFIX, is_function
from rarlhf.config.judging import RewardParams
from rarlhf.config.methods import Method
from rarlhf.config.params import DataParams, ModelParams, Params, RiskParams
from rarlhf.messages.markdown import code, escaped
from rarlhf.risk.planned import method_values

LICENCE = "apache-2.0"  # of what is the project's own
MAIN: Mapping[str, tuple[str, ...]] = {  # what a card shows of a section; all of it where the section is not named
    "model": ("adapter", "quantization", "dtype"),
    "sft": ("tokens", "epochs", "batch_size", "lr"),
    "ppo": ("iterations", "batch_size", "epochs", "lr", "max_new_tokens", "min_new_tokens", "temperature"),
    "reward": ("label", "sign", "max_length"),
}
PAPER: Mapping[str, Mapping[str, object]] = {  # shown besides, where the value is not the paper's
    "ppo": {"responses": 1, "baseline": "critic", "averaged": 0.0},
}


class Base(NamedTuple):
    """The base model, as cards describe it."""

    text: str  # Markdown
    name: str | None  # on the hub
    free: bool  # nothing of others went into it


@dataclass(frozen=True)
class Card:
    """What the card of a trained method is made of."""

    method: Method
    params: Params
    results: str  # Markdown

    def text(self) -> str:
        """The card in Markdown with its YAML header; equal cards give equal text."""
        environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
        environment.filters["escaped"] = escaped
        template = environment.from_string(
            resources.files("rarlhf.evaluation").joinpath("card.md.j2").read_text("utf-8")
        )
        body = template.render(
            method=self.method,
            folder=f"models/{self.method.name}/SEED" if self.method.per_seed else f"models/{self.method.name}",
            preset=self.params.preset,
            results=self.results,
            base=self._base.text,
            adapter=self._adapter,
            data_text=data_text(self.params.data),
            reward_text=reward_text(self.params.reward) if self.method.risk or self.method.chosen else None,
            measure=self.method.risk.measure if self.method.risk else None,
            training=self.method.chosen.kind if self.method.chosen else None,
            all_texts=self.params.sft.texts == "all",
            values=list(self._values()),
            free=self._free,
        )
        return str(ModelCard(f"---\n{self._header().to_yaml()}\n---\n\n{body}"))

    @property
    def _base(self) -> Base:
        return base_of_params(self.params.model, self.params.data)

    @property
    def _adapter(self) -> bool:
        return self.params.model.adapter == "lora"

    @property
    def _free(self) -> bool:
        """Whether nothing of others went into the model."""
        return self.params.data.source == "generator" and self._base.free

    def _header(self) -> ModelCardData:
        data = self.params.data
        return ModelCardData(
            license=LICENCE if self._free else "other",
            license_name=None if self._free else "that-of-base-and-data",
            language="en" if data.source == "generator" else None,
            library_name="peft" if self._adapter else "transformers",
            pipeline_tag="text-generation",
            base_model=self._base.name,
            datasets=[data.name] if data.source == "hub" and data.name else None,
            tags=["rarlhf", *(["lora"] if self._adapter else []), self.method.name],
        )

    def _values(self) -> Iterator[tuple[str, str]]:
        """Keys of params.yaml that decided the training, with their values."""
        sections: dict[str, Section] = {"model": self.params.model, "sft": self.params.sft}
        if self.method.chosen:
            sections |= {f"tuning.{self.method.chosen.kind}": self.method.chosen.settings, "reward": self.params.reward}
        if self.method.risk:
            fitted = self.method.made_by == "fit"
            way = {"fit": self.params.fit} if fitted else {"ppo": self.params.ppo.model_copy(update=self.method.ppo)}
            others = {"kl": self.params.kl, "risk": self.method.risk, "reward": self.params.reward}
            sections = {"model": self.params.model, **way, **others}
        for name, section in sections.items():
            whole = list(type(section).model_fields)
            if isinstance(section, RiskParams):  # what its measure reads
                whole = [key for key in whole if key in method_values(self.method)]
            shown = ("target",) if name == "kl" and self.method.made_by == "fit" else MAIN.get(name, tuple(whole))
            further = [key for key, value in PAPER.get(name, {}).items() if getattr(section, key) != value]
            for key in [*shown, *further]:
                yield f"{name}.{key}", f"{getattr(section, key)}"
        if self._adapter:
            yield "model.lora.r", f"{self.params.model.lora.r}"
            yield "model.lora.alpha", f"{self.params.model.lora.alpha:g}"


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
