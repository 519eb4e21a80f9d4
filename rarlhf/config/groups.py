"""Section `methods` of params.yaml: the groups of methods, by how they are made, and the heads that rules read."""

from typing import Annotated, Any, Literal

from pydantic import Field

from rarlhf.config.fields import Section

MethodName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,39}$")]  # part of paths and of stages' names
GROUPS = ("ppo", "fit", "tuned", "decoded", "guided", "headed")  # keys of `methods` whose entries are methods


class MethodParams(Section):
    """The methods that are compared."""

    start: list[Literal["base", "sft"]]
    ppo: dict[MethodName, dict[str, Any]]  # name to changes of section `risk`, and of the keys in `PPO_KEYS`
    fit: dict[MethodName, dict[str, Any]]  # the same, of methods without RL
    tuned: dict[MethodName, dict[str, Any]]  # name to `by`, and changes of that section of `tuning`
    decoded: dict[MethodName, dict[str, Any]]  # name to `rule`, its model, and changes of that section of `decoding`
    guided: dict[MethodName, dict[str, Any]]  # the same, of rules that read an expert and an anti-expert
    headed: dict[MethodName, dict[str, Any]]  # the same, of rules that read a head
    heads: dict[MethodName, dict[str, Any]]  # name to changes of section `head`: what rules read, no methods

    @property
    def risked(self) -> dict[str, dict[str, Any]]:
        """The methods with a risk of their own: by PPO, then by a fit."""
        return {**self.ppo, **self.fit}

    @property
    def trained(self) -> dict[str, dict[str, Any]]:
        """The methods that are trained once per seed."""
        return {**self.risked, **self.tuned}

    @property
    def ruled(self) -> dict[str, dict[str, Any]]:
        """The methods that decode a model by a rule."""
        return {**self.decoded, **self.guided, **self.headed}

    @property
    def names(self) -> list[str]:
        """All of them, in the order in which they are shown."""
        return [*self.start, *self.trained, *self.ruled]

    def group_of(self, name: str) -> str:
        """The key under `methods` that has the method: ppo, fit, tuned, decoded, guided or headed."""
        return next(key for key in GROUPS if name in getattr(self, key))
