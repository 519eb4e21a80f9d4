"""What each method costs, whatever the machine: answers that its training has scored, and what an answer takes."""

from collections.abc import Mapping
from typing import TypedDict

from rarlhf.config.baselines import (
    CHOOSING,
    QuarkParams,
    RegularisedParams,
    RejectionParams,
    SelfDebiasParams,
    SoftRejectionParams,
)
from rarlhf.config.counts import learning_rounds, warmup_rollouts
from rarlhf.config.methods import Method, methods_of
from rarlhf.config.params import Params
from rarlhf.evaluation.generations import Tables

SFT = "sft"  # the model that heads read


class Cost(TypedDict):
    """What a method costs."""

    training: int  # answers that one training of it has scored, the plan's included; 0 for no training
    draws: float  # responses that are drawn for one answer, mean
    scored: float  # of them, how many the scorer sees
    passes: int  # passes over a token of a response: one for each model, head or prompt that is read
    models: int  # language models and heads in memory


def costs(params: Params, tables: Tables) -> dict[str, Cost]:
    """The cost of each method that was generated with.

    Args:
        params: the run's.
        tables: generations of every method and seed, which know how many responses were drawn.
    """
    scored = scored_answers(params)
    methods = [method for method in methods_of(params) if method.name in tables]
    return {method.name: _cost(method, scored.get(method.name, 0), tables) for method in methods}


def _cost(method: Method, training: int, tables: Tables) -> Cost:
    drawn = [table.draws for table in tables[method.name].values() if table.draws is not None]
    draws = float(sum(float(one.mean()) for one in drawn) / len(drawn)) if drawn else 1.0
    kind = method.chosen.kind if method.chosen is not None and not method.has_model else None
    passes, models = _reads(method)
    return Cost(training=training, draws=draws, scored=draws if kind in CHOOSING else 0.0, passes=passes, models=models)


def _reads(method: Method) -> tuple[int, int]:
    """Passes over a token, and models in memory, where a model counts once however often it is named.

    A rule with a head reads the SFT model besides, by a pass of its own, and the head.
    """
    if method.chosen is None or method.has_model:
        return 1, 1
    if isinstance(method.chosen.settings, SelfDebiasParams):
        return 1 + len(method.chosen.settings.attributes), 1
    named = list(method.chosen.models.values())
    named += [SFT, method.chosen.head] if method.chosen.head else []
    return len(named), len(set(named))


def scored_answers(params: Params) -> dict[str, int]:
    """Answers that one training of each method needs scored; none of a model that training starts from.

    A PPO training scores a batch per iteration, those that warm up the critic included. A fit scores its plan's
    answers, and those of each further round. Quark scores the answers of each round, and regularised fine-tuning those
    of each round that learns a head. What a plan decides, such as `risk.eta: plan`, needs the plan's answers too, which
    are drawn once for all methods and seeds; so does a head. A rule has the cost of the models that it reads. Rows of
    the data that a training has scored are no answers.

    Returns: method -> number of answers.
    """
    plan = params.plan.train.prompts * params.plan.train.samples
    scored: dict[str, int] = {}
    for method in methods_of(params):  # a rule comes after the models that it reads
        if method.chosen is not None:
            scored[method.name] = _of_chosen(method, plan, scored)
        elif method.risk is not None:
            scored[method.name] = _of_risk(method, plan, params)
    return scored


def _of_risk(method: Method, plan: int, params: Params) -> int:
    if method.made_by == "fit":
        return plan + (params.fit.rounds - 1) * params.plan.train.prompts * params.fit.samples
    ppo = params.ppo_of(method.name)
    planned = method.risk is not None and method.risk.eta == "plan" and method.risk.measure in ("cvar_ru", "mean_cvar")
    return (ppo.iterations + warmup_rollouts(ppo)) * ppo.batch_size + (plan if planned else 0)


def _of_chosen(method: Method, plan: int, scored: Mapping[str, int]) -> int:
    if method.chosen is None:
        return 0
    settings, read = method.chosen.settings, set(method.chosen.models.values())
    own = settings.rounds * settings.prompts if isinstance(settings, QuarkParams) else 0
    soft = False
    if isinstance(settings, RegularisedParams):
        own = len(learning_rounds(settings)) * settings.prompts * settings.samples
        soft = settings.head["labels"] == "soft" and "plan" in (settings.head["eta"], settings.head["kl_coef"])
    planned = (
        soft
        or method.chosen.head is not None
        or (isinstance(settings, RejectionParams) and settings.threshold == "plan")
        or (isinstance(settings, SoftRejectionParams) and "plan" in (settings.eta, settings.kl_coef))
    )
    return own + sum(scored.get(name, 0) for name in read) + (plan if planned else 0)
