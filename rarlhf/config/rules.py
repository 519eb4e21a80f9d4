"""Rules between values of params.yaml: each may be in range, and two may still not fit together."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from math import log

from rarlhf.config.function_names import function_name, is_function
from rarlhf.config.groups import GROUPS
from rarlhf.config.judging import NO_JUDGE, QUESTION_PARTS
from rarlhf.config.method_rules import Rule, method_rules
from rarlhf.config.params import Params

RESERVED = ("base", "sft", "reward", "second_scorer")  # folders of models/ that stages other than `ppo` write
FULL_PRODUCTS = 1e-6  # up to this threshold, no rounded activation shows in a log-probability
OURS = "python:rarlhf."  # functions of the library, whose code the stages depend on as it is


def clashes(p: Params) -> Iterator[str]:
    """A line for each broken rule: the keys with their values, then the rule."""
    for holds, keys, rule in rules(p):
        if not holds:
            values = ", ".join(f"{key} = {_value(p, key)!r}" for key in keys)
            yield f"  {values}: {rule}"


def cautions(p: Params) -> Iterator[str]:
    """A line for each choice that is allowed but makes results worse: keys with values, the reason, a better choice."""
    if p.model.quantization == "int8" and p.model.int8_threshold > FULL_PRODUCTS:
        yield (
            f"model.quantization = 'int8', model.int8_threshold = {p.model.int8_threshold:g}: a log-probability "
            "depends on the rest of its batch, so that PPO's first ratios are not 1; set int8_threshold to 1e-9, which "
            "costs time and memory (docs/lora.md)"
        )
    yield from _cautions_of_sft(p)


def _cautions_of_sft(p: Params) -> Iterator[str]:
    """Choices with which SFT may teach the model to stop at once; stage `prompts` looks at the texts themselves."""
    if not p.sft.end_of_text or p.sft.epochs == 0 or p.prompts.chat_template:
        return
    columns = p.data.columns
    told = "and sft.end_of_text is true, so SFT may teach the model to stop at once; set sft.end_of_text to false"
    if columns.text is not None and (columns.text == columns.prompt or columns.text.split(".")[0] == "prompt"):
        yield f"data.columns.text = {columns.text!r}: SFT texts are bare prompts, {told}"
    elif p.sft.tokens <= p.prompts.tokens:
        lengths = f"sft.tokens = {p.sft.tokens}, prompts.tokens = {p.prompts.tokens}"
        yield f"{lengths}: SFT texts are no longer than queries, {told}, or raise sft.tokens"


def _value(params: Params, key: str) -> object:
    value: object = params
    for part in key.split("."):
        value = value[part] if isinstance(value, Mapping) else getattr(value, part)
    if isinstance(value, list):
        return [item.model_dump(exclude_unset=True) if hasattr(item, "model_dump") else item for item in value]
    return value


def rules(p: Params) -> Iterable[Rule]:
    """All rules, held or not, in one order; those of each entry of `methods.ppo` and `methods.fit` come last."""
    yield from _general_rules(p)
    yield from _data_rules(p)
    yield from _row_rules(p)
    yield from _column_rules(p)
    yield from _scorer_rules(p)
    yield from _judge_rules(p)
    yield from _preference_rules(p)
    yield from _utility_rules(p)
    yield from _model_rules(p)
    yield from _sharding_rules(p)
    yield from _shape_rules(p)
    yield (
        p.sft.batch_size % p.sft.micro_batch_size == 0,
        ("sft.batch_size", "sft.micro_batch_size"),
        "micro_batch_size must divide batch_size",
    )
    yield from _plan_rules(p)
    yield from _ppo_rules(p)
    yield from method_rules(p)


def _general_rules(p: Params) -> Iterable[Rule]:
    yield len(set(p.seeds)) == len(p.seeds), ("seeds",), "seeds must be distinct"
    yield len(set(p.methods.start)) == len(p.methods.start), ("methods.start",), "methods must be distinct"
    yield bool(p.methods.names), ("methods.start", "methods.ppo", "methods.fit"), "name at least one method"
    groups = (*GROUPS, "heads")  # a head has a folder beside the methods' models
    counts = Counter(name for group in groups for name in getattr(p.methods, group))
    taken = [name for name in counts if name in RESERVED]
    both = [name for name, count in counts.items() if count > 1]
    keys = tuple(f"methods.{name}" for name in groups if set(both) & set(getattr(p.methods, name)))
    yield not both, keys, f"{', '.join(both)}: give each method one name of its own"
    plain = "rlhf" not in p.methods.ppo or p.risk_of("rlhf").measure == "none"
    plain = plain and "rlhf" not in p.methods.fit
    yield plain, ("methods.ppo",), "rlhf is plain RLHF: give it measure: none, or give the method another name"
    yield (
        not taken,
        tuple(f"methods.{name}" for name in groups if set(taken) & set(getattr(p.methods, name))),
        f"another stage writes models/{', models/'.join(taken)}; give it another name",
    )
    one_tail = (p.evaluate.tail_quantile is None) != (p.evaluate.tail_threshold is None)
    yield one_tail, ("evaluate.tail_quantile", "evaluate.tail_threshold"), "set one of the two, and the other to null"


def _data_rules(p: Params) -> Iterable[Rule]:
    source = p.data.source
    yield (
        source != "file" or bool(p.data.path),
        ("data.source", "data.path"),
        ("source file needs the folder of the data files: set data.path, or make repro PRESET=... DATA=FOLDER"),
    )
    hub = bool(p.data.name) and bool(p.data.revision)
    yield (
        source != "hub" or hub,
        ("data.source", "data.name", "data.revision"),
        "source hub needs a name and a revision",
    )
    yield (
        source == "file" or not p.data.watch,
        ("data.source", "data.watch"),
        "only the files of source file can be watched",
    )
    yield len(p.data.watch) <= 1, ("data.watch",), "path is named twice"
    own_test = source != "generator" or p.data.test_share is None
    yield own_test, ("data.source", "data.test_share"), "source generator makes test rows of its own"
    one_test = source != "hub" or (p.data.splits.test is None) != (p.data.test_share is None)
    yield one_test, ("data.splits.test", "data.test_share"), "set one of the two, and the other to null"
    room = p.data.train_rows is None or p.data.second_scorer_rows < p.data.train_rows
    yield room, ("data.train_rows", "data.second_scorer_rows"), "no training rows are left besides the second scorer's"


def _row_rules(p: Params) -> Iterable[Rule]:
    """Checks numbers of rows that the params give; stage `download` counts the real rows."""
    data, prompts = p.data, p.prompts
    generated = data.source != "generator" or None not in (data.train_rows, data.test_rows)
    yield (
        generated,
        ("data.source", "data.train_rows", "data.test_rows"),
        "source generator needs a number of rows for each split",
    )
    queries, rows = prompts.train + prompts.validation, data.train_rows
    enough = rows is None or queries <= max(rows - data.second_scorer_rows, 0)
    yield (
        enough,
        ("prompts.train", "prompts.validation", "data.train_rows", "data.second_scorer_rows"),
        f"{queries:,} queries are needed, but fewer training rows are left after the second scorer's are set aside",
    )
    yield (
        data.test_rows is None or prompts.test <= data.test_rows,
        ("prompts.test", "data.test_rows"),
        "more test queries than test rows",
    )


def _column_rules(p: Params) -> Iterable[Rule]:
    columns, scorers = p.data.columns, (p.reward, p.judge.second_scorer)
    yield (
        columns.text is not None or columns.prompt is not None,
        ("data.columns.text", "data.columns.prompt"),
        "rows need a text or a prompt: name the column of one of them",
    )
    for scorer in scorers:
        key = f"{scorer.section}.source"
        yield (
            columns.label is not None or scorer.source != "scratch",
            ("data.columns.label", key),
            f"a classifier is trained on labels: name their column, or set {key} to a scorer of your own",
        )
    bare = columns.text is None and p.data.source != "generator"
    rule = "SFT and the classifier need whole texts, and the data has prompts alone"
    made = ("model.source", p.model.source), *((f"{s.section}.source", s.source) for s in scorers)
    for key, source in made:
        yield not bare or source != "scratch", ("data.columns.text", key), f"{rule}: give a folder or a hub name"
    yield not bare or p.sft.epochs == 0, ("data.columns.text", "sft.epochs"), f"{rule}: set epochs to 0"
    share = p.data.wanted_share
    yield (
        columns.label is not None or (share.train is None and share.test is None),
        ("data.columns.label", "data.wanted_share.train", "data.wanted_share.test"),
        "a share of the wanted class needs labels: set both to null",
    )


def _scorer_rules(p: Params) -> Iterable[Rule]:
    others, second = p.reward.others, p.judge.second_scorer.source
    sources: tuple[str, ...] = ("reward.source", "reward.others")
    form = "a function is written python:package.module:function"
    yield all(function_name(source) for source in p.reward.functions), sources, form
    yield not is_function(second) or bool(function_name(second)), ("judge.second_scorer.source",), form
    yield (
        all(None not in x.classifier_keys for x in others if not is_function(x.source)),
        ("reward.others",),
        "a classifier needs label, output and max_length besides source and weight",
    )
    yield (
        not any(any(value is not None for value in x.classifier_keys) for x in others if is_function(x.source)),
        ("reward.others",),
        "a function takes only source and weight",
    )
    yield "scratch" not in [x.source for x in others], ("reward.others",), "only reward.source can be scratch"
    sources += ("judge.second_scorer.source",) if is_function(second) else ()
    own = [source for source in p.functions if not source.startswith(OURS)]
    watch = "a Python scorer's code is checked in every repro: set reward.watch to [code]"
    yield not own or bool(p.reward.watch), (*sources, "reward.watch"), watch
    nothing = "no scorer is a Python function of your own, so there is no code to watch: set it to []"
    yield bool(own) or not p.reward.watch, (*sources, "reward.watch"), nothing
    yield len(p.reward.watch) <= 1, ("reward.watch",), "code is named twice"


def _judge_rules(p: Params) -> Iterable[Rule]:
    second, toxicity = p.judge.second_scorer.source, p.judge.toxicity.scorer
    yield (
        second != "scratch" or p.data.second_scorer_rows > 0,
        ("judge.second_scorer.source", "data.second_scorer_rows"),
        "the second scorer learns from rows that nothing else uses: set some aside, or its source to none",
    )
    yield (
        second in ("scratch", NO_JUDGE)
        or second not in (p.reward.source, *(other.source for other in p.reward.others)),
        ("judge.second_scorer.source", "reward.source", "reward.others"),
        "training sees this scorer: name another one, or none",
    )
    yield (
        toxicity != "second_scorer" or second != NO_JUDGE,
        ("judge.toxicity.scorer", "judge.second_scorer.source"),
        "there is no second scorer to measure toxicity by",
    )
    yield (
        toxicity != "reward" or not p.reward.others,
        ("judge.toxicity.scorer", "reward.others"),
        "a sum of several scorers is no probability: measure toxicity by the second scorer, or not at all",
    )


def _preference_rules(p: Params) -> Iterable[Rule]:
    preference = p.judge.preference
    on = preference.source != NO_JUDGE
    yield (
        not on or preference.against in p.methods.names,
        ("judge.preference.against",),
        f"name the method that the others are compared with, one of {', '.join(p.methods.names)}",
    )
    yield (
        not on or len(p.methods.names) > 1,
        ("judge.preference.source", "judge.preference.against"),
        "there is no other method whose answers could be compared with its answers: set source to none",
    )
    yield (
        all(preference.instruction.count(part) == 1 for part in QUESTION_PARTS),
        ("judge.preference.instruction",),
        f"it must hold {', '.join(QUESTION_PARTS)}, each once",
    )


def _utility_rules(p: Params) -> Iterable[Rule]:
    utility = p.utility
    yield len(set(utility.tasks)) == len(utility.tasks), ("utility.tasks",), "a task is named twice"
    yield (
        set(utility.files) <= set(utility.tasks),
        ("utility.files", "utility.tasks"),
        "files are given for a task that is not asked for",
    )
    yield (
        set(utility.fewshot) <= set(utility.tasks),
        ("utility.fewshot", "utility.tasks"),
        "examples are given for a task that is not asked for",
    )
    yield (
        utility.classification.rows == 0 or p.data.columns.label is not None or p.data.source == "generator",
        ("utility.classification.rows", "data.columns.label"),
        "the classifier is fitted on labels: name their column, or set rows to 0",
    )


def _model_rules(p: Params) -> Iterable[Rule]:
    lora = p.model.adapter == "lora"
    rule = "full training needs float32 weights: set model.adapter: lora, which freezes them"
    yield lora or p.model.quantization == "none", ("model.quantization", "model.adapter"), rule
    yield lora or p.model.dtype == "float32", ("model.dtype", "model.adapter"), rule


def _sharding_rules(p: Params) -> Iterable[Rule]:
    whole = p.runtime.sharding == "none"
    yield (
        whole or p.model.adapter == "none",
        ("runtime.sharding", "model.adapter"),
        "only weights that are trained are divided, and an adapter's backbone is frozen: set sharding: none",
    )
    yield (
        whole or p.runtime.decode == "eager",
        ("runtime.sharding", "runtime.decode"),
        "compiled passes need weights that stay where they are: set decode: eager",
    )
    yield (
        whole or p.ppo.micro_batch_size != "auto",
        ("runtime.sharding", "ppo.micro_batch_size"),
        "auto tries sizes in each process alone, and divided weights need all processes: give a number",
    )


def _shape_rules(p: Params) -> Iterable[Rule]:
    model = p.model.scratch
    yield model.width % model.heads == 0, ("model.scratch.width", "model.scratch.heads"), "heads must divide width"
    for scorer in (p.reward, p.judge.second_scorer):
        keys = f"{scorer.section}.scratch.width", f"{scorer.section}.scratch.heads"
        yield scorer.scratch.width % scorer.scratch.heads == 0, keys, "heads must divide width"
    if p.model.source == "scratch":
        length = p.prompts.tokens + p.ppo.max_new_tokens
        yield (
            length <= model.context,
            ("prompts.tokens", "ppo.max_new_tokens", "model.scratch.context"),
            (f"query and response take {length} tokens, more than the context"),
        )
        yield p.sft.tokens <= model.context, ("sft.tokens", "model.scratch.context"), "SFT texts exceed the context"


def _plan_rules(p: Params) -> Iterable[Rule]:
    plan, fit = p.plan, p.fit
    yield plan.train.prompts <= p.prompts.train, ("plan.train.prompts", "prompts.train"), "more prompts than there are"
    yield plan.test.prompts <= p.prompts.test, ("plan.test.prompts", "prompts.test"), "more prompts than there are"
    most = log(plan.train.samples)
    yield (
        max(plan.kl) < most,
        ("plan.kl", "plan.train.samples"),
        f"weights of that many answers reach a KL of log(samples) = {most:.3g} at most: name lower ones",
    )
    yield (
        fit.batch_size % fit.micro_batch_size == 0,
        ("fit.batch_size", "fit.micro_batch_size"),
        "micro_batch_size must divide batch_size",
    )


def _ppo_rules(p: Params) -> Iterable[Rule]:
    ppo = p.ppo
    yield (
        ppo.batch_size % ppo.mini_batch_size == 0,
        ("ppo.batch_size", "ppo.mini_batch_size"),
        ("mini_batch_size must divide batch_size"),
    )
    yield (
        ppo.mini_batch_size % ppo.micro_batch == 0,
        ("ppo.mini_batch_size", "ppo.micro_batch_size"),
        ("micro_batch_size must divide mini_batch_size"),
    )
    longest = ppo.max_new_tokens + (p.prompts.tokens if ppo.min_counts_query else 0)
    yield ppo.min_new_tokens <= longest, ("ppo.min_new_tokens", "ppo.max_new_tokens"), "min exceeds max"
    yield p.prompts.train >= ppo.queries, ("prompts.train", "ppo.batch_size"), "fewer queries than one batch"
    moved = p.kl.controller != "pid" or p.kl.coef > 0
    yield moved, ("kl.coef", "kl.controller"), "pid multiplies the coefficient, which stays 0: start above 0"
