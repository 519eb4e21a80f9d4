"""The registry of methods: their labels, their colours, and how their models are made.

`methods` in params.yaml chooses. A method is one of these:

- a model that training starts from (`methods.start`),
- a model that is trained once per seed: by PPO (`methods.ppo`), on weighted answers of the SFT model (`methods.fit`),
  or in another way (`methods.tuned`),
- another method's model, continued by a rule of decoding (`methods.decoded`, `methods.guided`, `methods.headed`).

The heads of `methods.heads` are no methods: rules of `methods.headed` read them.

An entry is a name and what differs from the sections that it reads. A user's own method is shown by its name, in one
of the `FURTHER` colours.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from rarlhf.config.baselines import Chosen
from rarlhf.config.params import Params, RiskParams

START = ("base", "sft")  # in the order in which the pipeline makes them
RLHF = "rlhf"  # plain RLHF, with which every other method that PPO trains is compared


@dataclass(frozen=True)
class Look:
    """How tables and figures show a method."""

    label: str
    colour: str


LOOKS: Mapping[str, Look] = {
    "base": Look("Base", "#6b6b6b"),
    "sft": Look("SFT", "#00805d"),
    "rlhf": Look("RLHF", "#0072b2"),
    "ra_rlhf": Look("RA-RLHF", "#c24e00"),
    "cvar_rlhf": Look("CVaR-RLHF", "#7b3294"),
    "cvar_fit": Look("CVaR fit", "#b3005e"),
    "mean_fit": Look("Mean fit", "#006b6b"),
    "rloo": Look("RLOO", "#3b6fb6"),
    "rloo_8": Look("RLOO, 8 samples", "#1d4e89"),
    "cvar_rloo": Look("CVaR-RLOO", "#9a5fb5"),
    "filtering": Look("Filtering", "#7a7a00"),
    "quark": Look("Quark", "#a0522d"),
    "sequential": Look("Sequential", "#556b2f"),
    "parallel": Look("Parallel", "#8fa63f"),
    "adaptive": Look("Adaptive", "#2f6b4f"),
    "expert": Look("Expert", "#4f8f6f"),
    "anti_expert": Look("Anti-expert", "#8f4f4f"),
    "prompted": Look("Prompted", "#8a8a8a"),
    "best_of_n": Look("Best of n", "#b8860b"),
    "rejection": Look("Rejection", "#c71585"),
    "soft_rejection": Look("Soft rejection", "#d2691e"),
    "self_debias": Look("Self-Debias", "#5f7f9f"),
    "dexperts": Look("DExperts", "#2e8b57"),
    "gedi": Look("GeDi", "#6a5acd"),
    "nado": Look("NADO", "#008b8b"),
    "rect": Look("RECT", "#8b4513"),
}
# Colours of further methods, in their order.
FURTHER = ("#8c6d00", "#5c4a3d", "#4d4dff", "#6b6b00", "#a01818", "#2f6f4f")


@dataclass(frozen=True)
class Method:
    """One method of a run."""

    name: str
    made_by: Literal["base", "sft", "ppo", "fit", "tuned", "decoded", "guided", "headed"]  # stage, or key in `methods`
    risk: RiskParams | None = None  # of a method trained by PPO or a fit; else None
    ppo: Mapping[str, object] = field(default_factory=dict)  # what a method trained by PPO changes of section `ppo`
    chosen: Chosen | None = None  # rule or training of a method of `tuned`, `decoded`, `guided` or `headed`; else None

    @property
    def label(self) -> str:
        """Its name in tables and figures."""
        return label_of(self.name)

    @property
    def per_seed(self) -> bool:
        """Whether there is a model for each seed, rather than one for all."""
        return self.made_by in {"ppo", "fit", "tuned"}

    @property
    def has_model(self) -> bool:
        """Whether it is a model, rather than a rule on another method's."""
        return self.made_by not in {"decoded", "guided", "headed"}

    def folder(self, models: Path, seed: int) -> Path:
        """Folder of the model for one seed, below the folder `models`."""
        return models / self.name / str(seed) if self.per_seed else models / self.name


def methods_of(params: Params) -> list[Method]:
    """All methods of a run, in the order in which they are shown."""
    methods = params.methods
    start = [Method(name, name) for name in methods.start]
    by_ppo = [Method(name, "ppo", params.risk_of(name), params.ppo_changes(name)) for name in methods.ppo]
    by_fit = [Method(name, "fit", params.risk_of(name)) for name in methods.fit]
    tuned = [Method(name, "tuned", chosen=params.chosen_of(name)) for name in methods.tuned]
    decoded = [Method(name, "decoded", chosen=params.chosen_of(name)) for name in methods.decoded]
    guided = [Method(name, "guided", chosen=params.chosen_of(name)) for name in methods.guided]
    headed = [Method(name, "headed", chosen=params.chosen_of(name)) for name in methods.headed]
    return [*start, *by_ppo, *by_fit, *tuned, *decoded, *guided, *headed]


def label_of(name: str) -> str:
    """Label of a method in tables and figures; a method that is not in `LOOKS` is shown by its name."""
    return LOOKS[name].label if name in LOOKS else name


def colours_of(names: Iterable[str]) -> dict[str, str]:
    """A colour for each method. The colours of `FURTHER` repeat if there are more methods than colours."""
    names = list(names)
    others = [name for name in names if name not in LOOKS]
    further = {name: FURTHER[number % len(FURTHER)] for number, name in enumerate(others)}
    return {name: LOOKS[name].colour if name in LOOKS else further[name] for name in names}


def is_trained(name: str) -> bool:
    """Whether the method is trained, by PPO or a fit; the others are models that training starts from."""
    return name not in START


def in_order(names: Iterable[str]) -> list[str]:
    """Methods in the order of `LOOKS`, then the others in the order given."""
    known = list(LOOKS)
    return sorted(names, key=lambda name: known.index(name) if name in known else len(known))
