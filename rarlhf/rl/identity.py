"""Settings that a checkpoint must match to be continued."""

import hashlib
import json
from collections.abc import Sequence

from torch import nn

from rarlhf.config.fields import Section
from rarlhf.system.machine import Machine


def settings_of(sections: dict[str, Section], seed: int, machine: Machine, policy: nn.Module) -> dict[str, object]:
    """The settings that decide a training's bytes; its queries, starting weights and score are not among them.

    Args:
        sections: of the params, by name.
        seed: of the run.
        machine: device and precision.
        policy: the number and shapes of its weights are compared.
    Returns: values that JSON can hold, by keys such as `ppo.lr`.
    """
    settings: dict[str, object] = {
        f"{name}.{key}": value
        for name, section in sections.items()
        for key, value in section.model_dump(mode="json").items()
    }
    shapes = {name: list(parameter.shape) for name, parameter in policy.named_parameters()}
    weights = sum(parameter.numel() for parameter in policy.parameters())
    settings |= {"seed": seed, "model": f"{weights} weights ({digest(shapes)})"}
    settings |= {"runtime.device": machine.device.type, "runtime.precision": str(machine.dtype)}
    settings["runtime.decode"] = "compiled" if machine.compiled else "eager"
    return settings | {"runtime.sharding": "full" if machine.sharded else "none"}


def described(queries: Sequence[list[int]]) -> str:
    """The number of the queries and a digest of their tokens."""
    return f"{len(queries)} queries ({digest(list(queries))})"


def digest(value: object) -> str:
    """The first 8 hexadecimal digits of the SHA-256 of a value that JSON can hold."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:8]
