"""Decoding rules at the command line: `rarlhf generate MODEL --rule NAME`, and what each rule reads."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rarlhf.config.errors import UserError

if TYPE_CHECKING:
    from rarlhf.config.fields import Section
    from rarlhf.config.judging import RewardParams
    from rarlhf.decoding.rules import DecodingRule
    from rarlhf.decoding.writing import OpenModel
    from rarlhf.system.machine import Machine

OPTIONS = ("set", "expert", "anti_expert", "head", "sft", "scorer", "label")  # that say something of a rule
SCORING = ("scorer", "label")


class ChosenRule(NamedTuple):
    """What a command line says of a rule, checked before slow imports."""

    name: str
    settings: "Section"
    experts: tuple[Path, ...] = ()  # folders of the expert and the anti-expert, or none
    head: Path | None = None
    sft: Path | None = None  # that the head stands on; None for the model that is decoded
    scorer: "tuple[Path, RewardParams] | None" = None  # as `chosen_scorer` gives it; None for a rule that reads none


def add_rule_options(parser: argparse.ArgumentParser) -> None:
    """Options of a command that may decode by a rule."""
    group = parser.add_argument_group("decoding rules", "Section decoding of params.yaml has their settings.")
    group.add_argument("--rule", metavar="NAME", help="such as best_of_n, soft_rejection, self_debias or dexperts")
    group.add_argument(
        "--set", action="append", metavar="KEY=VALUE", help="replaces a value of the rule's section; may be repeated"
    )
    group.add_argument("--expert", type=Path, metavar="FOLDER", help="model of what is wanted")
    group.add_argument("--anti-expert", type=Path, metavar="FOLDER", help="model of what is unwanted")
    group.add_argument("--head", type=Path, metavar="FOLDER", help="head of rules nado and rect, such as models/good/1")
    group.add_argument(
        "--sft", type=Path, metavar="FOLDER", help="model that the head stands on (default: the one that is decoded)"
    )
    group.add_argument(
        "--scorer", type=Path, metavar="FOLDER", help="classifier by which draws are chosen (default: models/reward)"
    )
    group.add_argument("--label", help="the output of --scorer that is the score, by name or index")


def chosen_rule(arguments: argparse.Namespace) -> ChosenRule | None:
    """The rule that a command line names; None if it names none. Nothing slow is imported.

    Raises: UserError if there is no such rule, a setting or a folder is missing or wrong, or an option has no use.
    """
    name = arguments.rule
    given = [f"--{key.replace('_', '-')}" for key in OPTIONS if getattr(arguments, key) is not None]
    if name is None:
        if given:
            raise UserError(f"{' and '.join(given)}: of use to a decoding rule alone; name one by --rule")
        return None
    from rarlhf.config.baselines import CHOOSING, DECODED, GUIDED, HEADED

    known = (*DECODED, *GUIDED, *HEADED)
    if name not in known:
        raise UserError(f"--rule {name}: there is no such rule; take one of {', '.join(known)}")
    reads = {"--set"}
    for rules, options in ((GUIDED, ("expert", "anti-expert")), (HEADED, ("head", "sft")), (CHOOSING, SCORING)):
        reads |= {f"--{option}" for option in options if name in rules}
    useless = [option for option in given if option not in reads]
    if useless:
        raise UserError(f"{' and '.join(useless)}: rule {name} reads no such thing; leave it out")
    chosen = ChosenRule(name, _settings(name, arguments.set or []))
    if name in GUIDED:
        return chosen._replace(experts=_experts(name, arguments))
    if name in HEADED:
        return chosen._replace(head=_head(name, arguments), sft=arguments.sft)
    return chosen._replace(scorer=_scorer(arguments)) if name in CHOOSING else chosen


def open_rule(chosen: ChosenRule, model: "OpenModel", machine: "Machine", temperature: float) -> "DecodingRule":
    """Opens what a rule reads, and makes the rule.

    Args:
        chosen: what the command line says of it.
        model: that is decoded.
        machine: where further models go.
        temperature: at which the model is sampled.
    Raises: UserError if something cannot be loaded, or does not fit the model.
    """
    from rarlhf.commands.score import open_reward_model
    from rarlhf.config.baselines import CONDITIONED
    from rarlhf.data.queries import episode_texts
    from rarlhf.decoding.choice import Parts, build_rule
    from rarlhf.decoding.headed import open_headed
    from rarlhf.models.reference import frozen

    if any(model.way) and chosen.name not in CONDITIONED:
        raise UserError(f"--rule {chosen.name}: it would read this model, which is Quark's, without its token")
    parts = Parts(model.tokenizer, frozen(model.lm))
    if chosen.experts:
        expert, anti_expert = (frozen(_plain_model(folder, machine).lm) for folder in chosen.experts)
        parts = parts._replace(expert=expert, anti_expert=anti_expert)
    if chosen.head is not None:
        below = parts.model if chosen.sft is None else frozen(_plain_model(chosen.sft, machine).lm)
        parts = parts._replace(headed=open_headed(chosen.head, below, temperature))
    if chosen.scorer is not None:
        score = open_reward_model(*chosen.scorer, machine)
        parts = parts._replace(score=lambda episodes: score(episode_texts(episodes, model.tokenizer, None)))
    return build_rule(chosen.settings, parts)


def _plain_model(folder: Path, machine: "Machine") -> "OpenModel":
    """Raises: UserError if the model is not sampled as it is."""
    from rarlhf.decoding.writing import open_model

    model = open_model(folder, machine.device)
    if any(model.way):
        raise UserError(f"{folder} is a model of Quark's, which a rule would read without its token; name another")
    return model


def _settings(name: str, changes: Sequence[str]) -> "Section":
    """Section `decoding.NAME` of params.yaml with the changes; without that file, the changes alone."""
    from pydantic import ValidationError

    from rarlhf.commands.score import PARAMS
    from rarlhf.config.baselines import DecodingParams
    from rarlhf.config.load import load_params
    from rarlhf.config.refusals import describe

    kind: type[Section] = DecodingParams.model_fields[name].annotation  # type: ignore[assignment]
    there = getattr(load_params(PARAMS).decoding, name).model_dump() if PARAMS.is_file() else {}
    try:
        settings = kind.model_validate({**there, **dict(_change(change) for change in changes)})
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0])
        if first["type"] == "missing":
            raise UserError(f"--rule {name}: there is no {PARAMS} here, so give {key} by --set {key}=...") from error
        raise UserError(f"--set {describe(first, kind.model_fields).strip()}") from error
    planned = [key for key in kind.model_fields if getattr(settings, key) == "plan"]
    if planned:
        told = " ".join(f"--set {key}=..." for key in planned)
        raise UserError(f"--rule {name}: stage plan finds {' and '.join(planned)} for the pipeline; here, give {told}")
    return settings


def _change(text: str) -> tuple[str, Any]:
    """Key and value of KEY=VALUE. The value is read as in params.yaml, but text keeps the spaces around it."""
    from ruamel.yaml import YAML

    from rarlhf.config.refusals import unreadable

    key, mark, value = text.partition("=")
    if not mark or not key:
        raise UserError(f"--set {text}: write KEY=VALUE, such as n=8")
    try:
        read = YAML(typ="safe", pure=True).load(value)
    except Exception as error:  # as in `read_yaml`
        raise unreadable(Path(f"--set {key}"), error) from error
    plain = isinstance(read, str) and value.strip()[:1] not in {"'", '"'}
    return key, value if plain else read


def _experts(name: str, arguments: argparse.Namespace) -> tuple[Path, ...]:
    from rarlhf.models.folders import refuse_no_language_model

    folders = (arguments.expert, arguments.anti_expert)
    if None in folders:
        raise UserError(f"--rule {name} reads two further models: name them by --expert and --anti-expert")
    for folder in folders:
        refuse_no_language_model(folder, None)
    return folders


def _head(name: str, arguments: argparse.Namespace) -> Path:
    from rarlhf.models.folders import refuse_no_head, refuse_no_language_model

    if arguments.head is None:
        raise UserError(f"--rule {name} reads a head: name it by --head")
    refuse_no_head(arguments.head)
    if arguments.sft is not None:
        refuse_no_language_model(arguments.sft, None)
    return Path(arguments.head)


def _scorer(arguments: argparse.Namespace) -> "tuple[Path, RewardParams]":
    from rarlhf.commands.score import ScoreOptions, chosen_scorer

    return chosen_scorer(arguments.scorer, ScoreOptions(arguments.label, None, None, None), "--scorer")
