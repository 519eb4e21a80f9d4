"""What decides the risk of each trained method, its plan included: the content of data/plan/methods/NAME.json."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rarlhf.config.baselines import Chosen, HeadParams, RegularisedParams, RejectionParams, SoftRejectionParams
from rarlhf.config.errors import UserError
from rarlhf.config.fields import Section
from rarlhf.config.params import RiskParams
from rarlhf.data.acceptance import threshold_at
from rarlhf.risk.measures import MEASURES, deciding_values
from rarlhf.risk.plan import Aim, Answers, PlannedPolicy, aim_of, at_level, solve

if TYPE_CHECKING:
    from rarlhf.config.methods import Method

AnySection = TypeVar("AnySection", bound=Section)
PLAN = "plan"  # what stands for a number that stage `plan` finds
DIGITS = 6  # significant digits of a plan that are kept: far beyond its error, and equal on all machines
READ_BY_FITS = ("alpha", "mix", "eta")  # keys of section `risk` that a fit reads, where its measure does
KEPT = ("eta", "kl_coef", "kl", "mean", "cvar", "effective_samples", "effective_samples_low")


def needs_plan(method: "Method") -> bool:
    """Whether a plan decides a method's training: that of every fit, and of PPO where its eta is the plan's."""
    if method.risk is None:
        return False
    return method.made_by == "fit" or ("eta" in MEASURES[method.risk.measure].reads and method.risk.eta == "plan")


def method_values(method: "Method") -> dict[str, object]:
    """The values that decide a method and may differ from method to method, without its plan.

    Raises: ValueError for a model that training starts from.
    """
    if method.chosen is not None:
        chosen = method.chosen
        named = {"kind": chosen.kind, **chosen.models, **({"head": chosen.head} if chosen.head else {})}
        return {**named, **chosen.settings.model_dump(mode="json")}
    if method.risk is None:
        raise ValueError(f"{method.name} is a model that training starts from")
    if method.made_by == "ppo":
        return {**deciding_values(method.risk), **method.ppo}
    reads = MEASURES[method.risk.measure].reads
    return {key: getattr(method.risk, key) for key in ("measure", *READ_BY_FITS) if key == "measure" or key in reads}


def plans_of(methods: Iterable["Method"], answers: Answers, kl_target: float) -> dict[str, PlannedPolicy]:
    """The plan of each method that needs one, with the method's own eta where `risk.eta` is a number.

    Args:
        methods: of the run.
        answers: of the SFT model to training prompts.
        kl_target: nats per response.
    Raises: UserError as `solve` and `aim_of`, with the method's name.
    """
    plans: dict[str, PlannedPolicy] = {}
    known: dict[tuple[Aim, float | None], PlannedPolicy] = {}  # methods of one aim share a plan
    for method in methods:
        if method.risk is None or not needs_plan(method):
            continue
        eta = None if isinstance(method.risk.eta, str) else method.risk.eta
        try:
            aim = aim_of(method.risk)
            if (aim, eta) not in known:
                known[aim, eta] = solve(answers, aim, kl_target, eta)
        except UserError as error:
            raise UserError(f"{method.name}: {error}") from error
        plans[method.name] = known[aim, eta]
    return plans


def at_one_level(
    methods: Iterable["Method"], plans: Mapping[str, PlannedPolicy], answers: Answers, alpha: float
) -> tuple[float, dict[str, PlannedPolicy]]:
    """A level for what is shown of all plans together, and the plans with their CVaR at it.

    The level is that of the first method that plans a CVaR, whose own numbers are so shown as its file has them.

    Args:
        methods: of the run, in its order.
        plans: of those that need one.
        answers: that they were made from.
        alpha: the level where no method plans a CVaR, `risk.alpha`.
    """
    aims = {method.name: aim_of(method.risk) for method in methods if method.risk is not None and method.name in plans}
    level = next((aim.alpha for aim in aims.values() if aim.mix > 0), alpha)
    return level, {name: at_level(answers, plan, aims[name], level) for name, plan in plans.items()}


def file_of(method: "Method", plan: PlannedPolicy | None) -> dict[str, object]:
    """The content of a method's file.

    A plan for the mean is written without its CVaR, since `risk.alpha` decides nothing else in it.

    Args:
        method: a trained one.
        plan: its plan; None where it needs none.
    Raises: ValueError as `method_values`.
    """
    values = method_values(method)
    if plan is None:
        return values
    return {**values, "plan": written(plan) | ({"cvar": None} if plan.eta is None else {})}


def written(plan: PlannedPolicy) -> dict[str, float | None]:
    """A plan as its file has it."""
    values = asdict(plan)
    return {key: rounded(values[key]) for key in KEPT}


def rounded(value: float | None) -> float | None:
    """A number to `DIGITS` significant digits."""
    return None if value is None else float(f"{value:.{DIGITS}g}")


def read_plan(file: Path) -> Mapping[str, Any]:
    """The plan in a method's file: eta, kl_coef, kl and what is expected.

    Raises: UserError if it has none.
    """
    plan: Mapping[str, Any] | None = json.loads(file.read_text(encoding="utf-8")).get("plan")
    if plan is None:
        raise UserError(f"{file} holds no plan; `dvc repro plan` makes it")
    return plan


def with_planned_eta(risk: RiskParams, file: Path) -> RiskParams:
    """The section with the plan's number in the place of `eta: plan`; the section itself where it names none.

    Raises: UserError as `read_plan`.
    """
    if risk.eta != "plan" or "eta" not in MEASURES[risk.measure].reads:
        return risk
    return risk.model_copy(update={"eta": float(read_plan(file)["eta"])})


def planned_settings(settings: Section, answers: Answers, kl_target: float) -> dict[str, object]:
    """The settings of a rule, a training or a head with numbers in the place of `plan`, where they decide something.

    Args:
        settings: those of any other than rejection, soft rejection and a head have no `plan`; those of a training
            may have a head.
        answers: of the SFT model to training prompts.
        kl_target: nats per response.
    Raises: UserError as `solve`.
    """
    values = settings.model_dump(mode="json")
    if isinstance(settings, RegularisedParams):
        values["head"] = planned_settings(HeadParams.model_validate(settings.head), answers, kl_target)
    if isinstance(settings, RejectionParams) and settings.threshold == PLAN:
        values["threshold"] = rounded(threshold_at(answers.scores, kl_target, settings.n))
    hard = isinstance(settings, HeadParams) and settings.labels == "hard"
    if isinstance(settings, SoftRejectionParams | HeadParams) and not hard and PLAN in (settings.eta, settings.kl_coef):
        plan = solve(answers, Aim(1.0, settings.alpha), kl_target, _number(settings.eta))
        values["eta"] = rounded(plan.eta) if settings.eta == PLAN else settings.eta
        values["kl_coef"] = rounded(plan.kl_coef) if settings.kl_coef == PLAN else settings.kl_coef
    return values


def _number(value: float | str) -> float | None:
    return None if isinstance(value, str) else value


def read_settings(chosen: Chosen, file: Path) -> Section:
    """The settings in a method's file, which are an entry's with numbers in the place of `plan`.

    Args:
        chosen: the entry, for the kind of its settings.
        file: data/plan/methods/NAME.json.
    """
    return _read(type(chosen.settings), file)


def read_head(file: Path) -> HeadParams:
    """The settings of a head in its file, data/plan/heads/NAME.json."""
    return _read(HeadParams, file)


def _read(kind: type[AnySection], file: Path) -> AnySection:
    values = json.loads(file.read_text(encoding="utf-8"))
    return kind.model_validate({key: values[key] for key in kind.model_fields})
