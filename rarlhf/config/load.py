"""Reads params.yaml.

`load_params` is the only way in. It refuses a file with unknown, missing, ill-typed, out-of-range or clashing keys and
names all of them at once, each with its key, its value and the rule.
"""

from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, ValidationError

from rarlhf.config.errors import UserError
from rarlhf.config.params import Params, RiskParams
from rarlhf.config.refusals import describe, listed, read_yaml
from rarlhf.config.rules import clashes


def load_params(path: str | Path = "params.yaml") -> Params:
    """Reads and validates a params file.

    Raises: UserError naming every unknown, missing, ill-typed, out-of-range or clashing key with its value and rule.
    """
    raw = read_yaml(Path(path))
    if not isinstance(raw, dict):
        raise UserError(f"{path} holds no sections; copy a preset over it (cp presets/tiny.yaml {path})")
    try:
        params = Params.model_validate(raw)
    except ValidationError as error:
        problems = [describe(detail, _known_keys(Params)) for detail in error.errors()]
    else:
        problems = list(_method_problems(params)) or list(clashes(params))
        if not problems:
            return params
    raise UserError(listed(Path(path), problems))


def _method_problems(params: Params) -> Iterator[str]:
    """A line for each value in `methods.ppo` and `methods.fit` that section `risk` would not allow."""
    for name in params.methods.trained:
        try:
            params.risk_of(name)
        except ValidationError as error:
            kind = "ppo" if name in params.methods.ppo else "fit"
            known = [f"methods.{kind}.{name}.{key}" for key in RiskParams.model_fields]
            for detail in error.errors():
                yield describe({**detail, "loc": ("methods", kind, name, *detail["loc"])}, known)


def _known_keys(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in section.model_fields.items():
        yield prefix + name
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _known_keys(field.annotation, f"{prefix}{name}.")
