"""Rules of the methods of params.yaml: what their entries ask of the sections that they read, and of each other."""

from collections.abc import Collection, Iterable

from rarlhf.config.baselines import (
    CONDITIONED,
    HeadParams,
    PromptedParams,
    QuarkParams,
    RegularisedParams,
    SelfDebiasParams,
    SupervisedParams,
)
from rarlhf.config.exact import schedule_end
from rarlhf.config.params import Params, RiskParams

PLANNED = ("cvar_ru", "mean_cvar")  # measures for which stage plan finds eta
Rule = tuple[bool, tuple[str, ...], str]  # whether it holds, its keys, its text


def method_rules(p: Params) -> Iterable[Rule]:
    """The rules of sections `risk` and `ppo` that methods share, then those of each entry of `methods`."""
    yield from _response_rules(p, ())
    yield from _baseline_rules(p)
    yield from _risk_rules(p, p.risk, (), RiskParams.model_fields)
    yield from _entry_rules(p)
    yield from _tuning_rules(p)
    yield from _decoding_rules(p)
    yield from _head_rules(p)


def _response_rules(p: Params, entry: tuple[str, ...]) -> Iterable[Rule]:
    """Rules of several responses to a query, in section `ppo` or as an `entry` of `methods.ppo` changes it."""
    ppo = p.ppo
    yield (
        ppo.batch_size % ppo.responses == 0,
        (*entry, "ppo.batch_size", *(() if entry else ("ppo.responses",))),
        "responses must divide batch_size",
    )
    yield (
        ppo.baseline == "critic" or ppo.responses > 1,
        entry or ("ppo.baseline", "ppo.responses"),
        "the baseline is the mean of a query's other responses: set responses to 2 or more",
    )


def _entry_rules(p: Params) -> Iterable[Rule]:
    for name, changes in p.methods.ppo.items():
        if changes:
            own = p.model_copy(update={"ppo": p.ppo_of(name)})
            entry = (f"methods.ppo.{name}",)
            yield from _risk_rules(own, p.risk_of(name), entry, changes)
            if p.ppo_changes(name):
                yield from _response_rules(own, entry)
    for name in p.methods.fit:
        risk = p.risk_of(name)
        planned = risk.measure in PLANNED and risk.of == "score" and risk.eta not in {"batch", "running"}
        yield (
            planned or risk.measure == "none",
            (f"methods.fit.{name}",),
            "a fit has measure none, or cvar_ru or mean_cvar with of: score and eta: plan or a number",
        )


def _baseline_rules(p: Params) -> Iterable[Rule]:
    """What `ppo.baseline: query` asks of the risk of each method of `methods.ppo`."""
    risks = {name: p.risk_of(name) for name in p.methods.ppo if p.ppo_of(name).baseline == "query"}
    with_critic = [name for name, risk in risks.items() if risk.critic == "all"]
    yield (
        not with_critic,
        ("ppo.baseline", "methods.ppo"),
        f"{', '.join(with_critic)}: critic all asks for a critic of all episodes, and there is none: set it to kept",
    )
    by_value = [name for name, risk in risks.items() if risk.measure == "cvar" and _reads_values(risk)]
    yield (
        not by_value,
        ("ppo.baseline", "methods.ppo"),
        f"{', '.join(by_value)}: rankings lambda_return and value, and hard_share, need a critic; set "
        "ranking to episode_return and hard_share to 0, or baseline to critic",
    )


def _reads_values(risk: RiskParams) -> bool:
    """Whether a critic's values choose episodes or prompts."""
    return risk.ranking in ("lambda_return", "value") or risk.hard_share > 0


def _tuning_rules(p: Params) -> Iterable[Rule]:
    """What each entry of `methods.tuned` asks of the rest."""
    for name in _own(p, "tuned"):
        settings, entry = p.chosen_of(name).settings, f"methods.tuned.{name}"
        if isinstance(settings, SupervisedParams | RegularisedParams):
            yield p.sft.epochs > 0, (entry, "sft.epochs"), "it trains as section sft says: set epochs above 0"
            bare = p.data.columns.text is None and p.data.source != "generator"
            yield not bare, (entry, "data.columns.text"), "it learns whole texts, and the data has prompts alone"
        known = p.data.columns.label is not None or p.prompts.wanted_quantile > 0
        if isinstance(settings, RegularisedParams):
            yield from _regularised_rules(p, settings, entry, known)
        if isinstance(settings, SupervisedParams):
            by_class = settings.texts in {"wanted", "unwanted"}
            yield (
                known or not by_class,
                (entry, "data.columns.label", "prompts.wanted_quantile"),
                "without labels a quantile divides the rows in classes: set it above 0, or take texts: above or below",
            )
            part = settings.texts != "below" or settings.quantile > 0
            yield part, (entry,), "no row is below the quantile 0: raise it"
        if isinstance(settings, QuarkParams):
            yield (
                settings.prompts <= p.prompts.train,
                (entry, "tuning.quark.prompts", "prompts.train"),
                "more prompts than there are",
            )
            yield (
                settings.batch_size % settings.micro_batch_size == 0,
                (entry, "tuning.quark.batch_size", "tuning.quark.micro_batch_size"),
                "micro_batch_size must divide batch_size",
            )
            length = 1 + p.prompts.tokens + p.ppo.max_new_tokens
            yield (
                p.model.source != "scratch" or length <= p.model.scratch.context,
                (entry, "prompts.tokens", "ppo.max_new_tokens", "model.scratch.context"),
                f"a token of Quark, query and response take {length} tokens, more than the context",
            )


def _regularised_rules(p: Params, settings: RegularisedParams, entry: str, known: bool) -> Iterable[Rule]:
    """What an entry by: regularised asks; `known` says whether rows can be divided in classes."""
    yield (
        settings.prompts <= p.prompts.train,
        (entry, "tuning.regularised.prompts", "prompts.train"),
        "more prompts than there are",
    )
    yield (
        p.sft.tokens > p.prompts.tokens,
        (entry, "sft.tokens", "prompts.tokens"),
        "the penalty is on tokens behind a query, and no row is longer than one: raise sft.tokens",
    )
    yield (
        not p.prompts.chat_template,
        (entry, "prompts.chat_template"),
        "the penalty is on plain texts: set it to false",
    )
    yield (
        known or settings.related != "label",
        (entry, "data.columns.label", "prompts.wanted_quantile"),
        "without labels a quantile divides the rows in classes: set it above 0, or take related: all or prompt",
    )
    yield from _rules_of_head(p, HeadParams.model_validate(settings.head), entry)


def _decoding_rules(p: Params) -> Iterable[Rule]:
    """What each entry of `methods.decoded`, `methods.guided` and `methods.headed` asks of the rest."""
    models = [*p.methods.start, *p.methods.trained]
    for name in (name for group in ("decoded", "guided", "headed") for name in _own(p, group)):
        chosen, entry = p.chosen_of(name), f"methods.{p.methods.group_of(name)}.{name}"
        for key, model in chosen.models.items():
            rule = f"{key} = {model}: name one of the methods that are models ({', '.join(models)})"
            yield model in models, (entry,), rule
        own = {model for model in chosen.models.values() if _by_quark(p, model)}
        if own and chosen.kind not in CONDITIONED:
            yield (
                False,
                (entry,),
                f"{', '.join(sorted(own))} is by quark, whose model this rule would read without its token: name "
                "another",
            )
        heads = ", ".join(p.methods.heads) or "there is none yet"
        known = chosen.head is None or chosen.head in p.methods.heads
        yield known, (entry,), f"head = {chosen.head}: name one of methods.heads ({heads})"
        if isinstance(chosen.settings, PromptedParams | SelfDebiasParams):
            yield (
                not p.prompts.chat_template,
                (entry, "prompts.chat_template"),
                "a text before the prompt would stand before the template: set it to false",
            )


def _own(p: Params, group: str) -> list[str]:
    """Names of a group's methods, without those that another group has too, which a rule of their own refuses."""
    return [name for name in getattr(p.methods, group) if p.methods.group_of(name) == group]


def _by_quark(p: Params, name: str) -> bool:
    return name in p.methods.tuned and isinstance(p.chosen_of(name).settings, QuarkParams)


def _head_rules(p: Params) -> Iterable[Rule]:
    """What each entry of `methods.heads` asks of the rest."""
    for name in p.methods.heads:
        yield from _rules_of_head(p, p.head_of(name), f"methods.heads.{name}")


def _rules_of_head(p: Params, head: HeadParams, entry: str) -> Iterable[Rule]:
    """What the settings of a head ask, where `entry` names it."""
    yield (
        head.batch_size % head.micro_batch_size == 0,
        (entry, "head.batch_size", "head.micro_batch_size"),
        "micro_batch_size must divide batch_size",
    )
    known = p.model.source == "scratch" and head.layers > 0
    yield (
        not known or p.model.scratch.width % head.heads == 0,
        (entry, "head.heads", "model.scratch.width"),
        "a head is as wide as the model: heads must divide width",
    )
    yield (
        head.labels == "soft" or head.quantile > 0,
        (entry, "head.quantile"),
        "every score is at or above the quantile 0, so all labels would be 1: raise it",
    )


def _risk_rules(p: Params, risk: RiskParams, entry: tuple[str, ...], named: Collection[str]) -> Iterable[Rule]:
    """Rules of section `risk`, or of the section as an `entry` of `methods.ppo` changes it by the keys `named`."""
    yield (
        risk.hard_share == 0 or risk.measure == "cvar",
        entry or ("risk.hard_share", "risk.measure"),
        "hard prompts are drawn more often only for measure cvar; set hard_share to 0",
    )
    yield (
        risk.hard_share == 0 or p.ppo.responses == 1,
        (*(entry or ("risk.hard_share",)), "ppo.responses"),
        "hard prompts are drawn and weighted one for each response; set hard_share to 0 or responses to 1",
    )
    end = schedule_end(risk.rho, p.ppo.iterations)
    yield (
        risk.measure == "none" or end > risk.warmup,
        (*(entry or ("risk.warmup", "risk.rho")), "ppo.iterations"),
        (
            f"the schedule reaches its end at iteration ceil(rho * iterations) = {end}, before the warmup is over: "
            "raise rho or lower warmup"
        ),
    )
    yield from _measure_rules(risk, entry, named)


def _measure_rules(risk: RiskParams, entry: tuple[str, ...], named: Collection[str]) -> Iterable[Rule]:
    """What a key asks of the measure. An entry may inherit a key that its own measure does not read."""
    hard = risk.measure == "cvar"
    yield (
        risk.of == "return" or not hard,
        entry or ("risk.of", "risk.measure"),
        "measure cvar is of the return, since dropped episodes leave the batch with their KL penalty; "
        "set of to return, or measure to cvar_ru",
    )
    planned = risk.measure in PLANNED
    yield (
        risk.eta != "plan" or (risk.of == "score" if planned else "eta" not in named),
        entry or ("risk.eta", "risk.measure", "risk.of"),
        "eta is planned only for measures cvar_ru and mean_cvar with of: score; set eta to batch",
    )
    yield (
        risk.ranking != "random" or hard or "ranking" not in named,
        entry or ("risk.ranking", "risk.measure"),
        "a random ranking chooses the episodes that measure cvar keeps; other measures keep all: set episode_return",
    )
    yield (
        risk.dropped == "free" or hard or "dropped" not in named,
        entry or ("risk.dropped", "risk.measure"),
        "only measure cvar drops episodes; set dropped to free",
    )
