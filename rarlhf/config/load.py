"""Reads params.yaml.

`load_params` is the only way in. It refuses a file with unknown, missing, ill-typed, out-of-range or clashing keys and
names all of them at once, each with its key, its value and the rule. `checked` is its part behind the reading.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from pydantic import BaseModel, ValidationError

from rarlhf.config.baselines import CHOICES, OWN_KEYS, HeadParams
from rarlhf.config.errors import UserError
from rarlhf.config.params import PPO_KEYS, Params, RiskParams
from rarlhf.config.refusals import describe, listed, read_yaml
from rarlhf.config.rules import clashes


def load_params(path: str | Path = "params.yaml") -> Params:
    """Reads and validates a params file.

    Raises: UserError naming every unknown, missing, ill-typed, out-of-range or clashing key with its value and rule.
    """
    return checked(read_yaml(Path(path)), Path(path))


def checked(raw: object, path: Path) -> Params:
    """Validates the plain values of a params file.

    Args:
        raw: what the file holds.
        path: where the values come from, for the messages.
    Raises: as `load_params`.
    """
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
    raise UserError(listed(path, problems))


def _method_problems(params: Params) -> Iterator[str]:
    """A line for each value in an entry of `methods` that the section which it changes would not allow."""
    for name in [*params.methods.trained, *params.methods.ruled]:
        group = params.methods.group_of(name)
        try:
            if group in {"ppo", "fit"}:
                fields = [*RiskParams.model_fields, *(PPO_KEYS if group == "ppo" else ())]
                params.risk_of(name)
                if group == "ppo":
                    params.ppo_of(name)
                continue
            missing = _missing_keys(params, group, name)
            if missing:
                yield missing
                continue
            kind = getattr(params.methods, group)[name][OWN_KEYS[group][0]]
            section = getattr(params.tuning if group == "tuned" else params.decoding, kind)
            fields = [*type(section).model_fields, *OWN_KEYS[group]]
            params.chosen_of(name)
        except ValidationError as error:
            yield from _described(error, ("methods", group, name), fields)
    for name in params.methods.heads:
        try:
            params.head_of(name)
        except ValidationError as error:
            yield from _described(error, ("methods", "heads", name), HeadParams.model_fields)


def _described(error: ValidationError, entry: Sequence[str], fields: Iterable[str]) -> Iterator[str]:
    """A line for each value of an entry that is not allowed; `fields` are the keys that an entry may have."""
    known = [".".join([*entry, key]) for key in fields]
    for detail in error.errors():
        yield describe({**detail, "loc": (*entry, *detail["loc"])}, known)


def _missing_keys(params: Params, group: str, name: str) -> str | None:
    """A line for an entry that does not say its rule or training, its models or its head; None if it does."""
    entry, own = getattr(params.methods, group)[name], OWN_KEYS[group]
    where = f"  methods.{group}.{name} = {entry!r}"
    missing = [key for key in own if not isinstance(entry.get(key), str)]
    if missing:
        return f"{where}: name {' and '.join(missing)}"
    if entry[own[0]] not in CHOICES[group]:
        return f"{where}: {own[0]} is one of {', '.join(CHOICES[group])}"
    return None


def _known_keys(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in section.model_fields.items():
        yield prefix + name
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _known_keys(field.annotation, f"{prefix}{name}.")
