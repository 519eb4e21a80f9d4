"""params.yaml: presets, every refusal, and that no key is without use."""

import re
from collections.abc import Iterator
from fractions import Fraction
from io import StringIO
from pathlib import Path
from typing import Any, get_args

import pytest
from ruamel.yaml import YAML

from rarlhf.config.errors import UserError
from rarlhf.config.exact import final_level
from rarlhf.config.load import load_params
from rarlhf.config.params import Params, RiskParams, Section
from rarlhf.config.rules import cautions, rules

REPOSITORY = Path(__file__).parents[3]
TINY = (REPOSITORY / "presets" / "tiny.yaml").read_text(encoding="utf-8")
PRESETS = sorted(path.stem for path in (REPOSITORY / "presets").glob("*.yaml"))
*OTHER_MEASURES, LAST_MEASURE = map(repr, get_args(RiskParams.model_fields["measure"].annotation))
MISSING = object()
Edits = dict[str, Any]


def plain(text: str) -> dict[str, Any]:
    return YAML(typ="safe", pure=True).load(text)


def leaves(section: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in section.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def edited(values: dict[str, Any], edits: Edits) -> dict[str, Any]:
    """`values` with the dotted keys of `edits` set, or taken out where MISSING."""
    for key, value in edits.items():
        *path, name = key.split(".")
        section = values
        for part in path:
            section = section[part]
        if value is MISSING:
            del section[name]
        else:
            section[name] = value
    return values


def write(folder: Path, edits: Edits) -> Path:
    """The tiny preset with edits, as a params file in `folder`."""
    stream = StringIO()
    YAML(typ="safe", pure=True).dump(edited(plain(TINY), edits), stream)
    path = folder / "params.yaml"
    path.write_text(stream.getvalue(), encoding="utf-8")
    return path


def refusal(folder: Path, edits: Edits) -> list[str]:
    """The lines of the refusal, after the first."""
    path = write(folder, edits)
    with pytest.raises(UserError) as caught:
        load_params(path)
    first, *lines = str(caught.value).splitlines()
    assert first == f"{path}: {len(lines)} problem{'s' if len(lines) > 1 else ''}:"
    return [line.strip() for line in lines]


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_loads_and_has_the_keys_of_tiny(preset: str, tmp_path: Path) -> None:
    values = plain((REPOSITORY / "presets" / f"{preset}.yaml").read_text(encoding="utf-8"))
    assert list(leaves(values)) == list(leaves(plain(TINY)))
    if values["data"]["source"] == "file" and values["data"]["path"] is None:
        values["data"]["path"] = "data/files"
    path = tmp_path / "params.yaml"
    with path.open("w", encoding="utf-8") as stream:
        YAML(typ="safe", pure=True).dump(values, stream)
    params = load_params(path)
    assert params.preset == preset
    assert list(cautions(params)) == []


def test_values_come_as_they_are_written_and_are_frozen() -> None:
    params = load_params(REPOSITORY / "presets" / "tiny.yaml")
    assert params.model_dump(mode="json") == plain(TINY)
    with pytest.raises(ValueError, match="frozen"):
        params.risk.alpha = 0.5


def test_a_level_is_the_rational_that_was_written(tmp_path: Path) -> None:
    risk = load_params(write(tmp_path, {"risk.alpha": 0.28})).risk
    assert final_level(risk.measure, risk.alpha) == Fraction(7, 25)
    assert final_level("entropic", risk.alpha) == 1


@pytest.mark.parametrize("text", ["1e-05", "1E-5", "0.00001"])
def test_numbers_that_yaml_leaves_as_text_are_numbers(text: str, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(re.sub(r"^(ppo:(\n  .*)*?\n  lr:) \S+", rf'\1 "{text}"', TINY, count=1, flags=re.M))
    assert load_params(path).ppo.lr == 1e-5


NAME_FORM = "the name should be lower-case letters, digits and _, begin with a letter, and have at most 40 characters"
METHODS_FORM = "is now start: [...] and ppo: {...}; presets/tiny.yaml shows the form"
PROMPTS_ALONE = {"data.source": "file", "data.path": "x", "data.columns.text": None, "data.columns.prompt": "prompt"}
# What clashes, and where the refusal is: keys with their values, and a part of the rule.
CLASHES = [
    ({"seeds": [1, 1]}, "seeds = [1, 1]: seeds must be distinct"),
    ({"methods.start": ["sft", "sft"]}, "methods.start = ['sft', 'sft']: methods must be distinct"),
    (
        {"methods.start": [], "methods.ppo": {}},
        "methods.start = [], methods.ppo = {}: name at least one method",
    ),
    (
        {"methods.ppo": {"rlhf": {"alpha": 0.5}}},
        "methods.ppo = {'rlhf': {'alpha': 0.5}}: rlhf is plain RLHF: give it measure: none",
    ),
    (
        {"methods.ppo": {"reward": {}}},
        "methods.ppo = {'reward': {}}: another stage writes models/reward; give it another name",
    ),
    (
        {"methods.ppo": {"late": {"warmup": 80}}},
        "methods.ppo.late = {'warmup': 80}, ppo.iterations = 80: the schedule reaches its end",
    ),
    (
        {"methods.ppo": {"hard": {"measure": "evar", "hard_share": 0.5}}},
        "methods.ppo.hard = {'hard_share': 0.5, 'measure': 'evar'}: hard prompts are drawn more often only for",
    ),
    (
        {"evaluate.tail_threshold": -2.5},
        "evaluate.tail_quantile = 0.1, evaluate.tail_threshold = -2.5: set one of the two",
    ),
    ({"evaluate.tail_quantile": None}, "evaluate.tail_quantile = None, evaluate.tail_threshold = None: set one"),
    ({"data.source": "file"}, "data.source = 'file', data.path = None: source file needs the folder"),
    (
        {"data.source": "hub", "data.name": "a/b"},
        "data.source = 'hub', data.name = 'a/b', data.revision = None: source hub needs a name and a revision",
    ),
    (
        {"data.test_share": 0.2},
        "data.source = 'generator', data.test_share = 0.2: source generator makes test rows of its own",
    ),
    (
        {"data.source": "hub", "data.name": "a/b", "data.revision": "c", "data.splits.test": None},
        "data.splits.test = None, data.test_share = None: set one of the two, and the other to null",
    ),
    (
        {"data.source": "hub", "data.name": "a/b", "data.revision": "c", "data.test_share": 0.2},
        "data.splits.test = 'test', data.test_share = 0.2: set one of the two, and the other to null",
    ),
    ({"data.watch": ["path"]}, "data.source = 'generator', data.watch = ['path']: only the files of source file"),
    (
        {"data.source": "file", "data.path": "x", "data.watch": ["path", "path"]},
        "data.watch = ['path', 'path']: path is named twice",
    ),
    (
        {"data.train_rows": 50, "data.second_scorer_rows": 50},
        "data.train_rows = 50, data.second_scorer_rows = 50: no training rows are left",
    ),
    ({"data.test_rows": None}, "data.source = 'generator', data.train_rows = 14000, data.test_rows = None: source"),
    (
        {"prompts.train": 11801},  # 14,000 rows less 2,000 leave 12,000, of which 200 are for validation
        "prompts.train = 11801, prompts.validation = 200, data.train_rows = 14000, data.second_scorer_rows = 2000: "
        "12,001 queries are needed, but fewer training rows are left",
    ),
    ({"prompts.test": 2001}, "prompts.test = 2001, data.test_rows = 2000: more test queries than test rows"),
    (
        {"model.quantization": "int8"},
        "model.quantization = 'int8', model.adapter = 'none': full training needs float32 weights",
    ),
    (
        {"model.dtype": "bfloat16"},
        "model.dtype = 'bfloat16', model.adapter = 'none': full training needs float32 weights",
    ),
    (
        {"data.columns.text": None},
        "data.columns.text = None, data.columns.prompt = None: rows need a text or a prompt",
    ),
    (
        {"data.columns.label": None},
        "data.columns.label = None, reward.source = 'scratch': a classifier is trained on labels",
    ),
    (
        PROMPTS_ALONE,
        "data.columns.text = None, model.source = 'scratch': SFT and the classifier need whole texts, "
        "and the data has prompts alone: give a folder",
    ),
    (
        PROMPTS_ALONE,
        "data.columns.text = None, reward.source = 'scratch': SFT and the classifier need whole texts, "
        "and the data has prompts alone: give a folder",
    ),
    (
        PROMPTS_ALONE,
        "data.columns.text = None, sft.epochs = 2.0: SFT and the classifier need whole texts, and",
    ),
    (
        {"data.columns.label": None, "data.wanted_share.test": 0.5},
        "data.columns.label = None, data.wanted_share.train = None, data.wanted_share.test = 0.5: a share",
    ),
    (
        {"reward.source": "python:own", "reward.watch": ["code"]},
        "reward.source = 'python:own', reward.others = []: a function is written python:package.module:function",
    ),
    (
        {"reward.others": [{"source": "a/b", "weight": 1, "label": 0}]},
        "reward.others = [{'source': 'a/b', 'weight': 1.0, 'label': 0}]: a classifier needs label, output",
    ),
    (
        {"reward.others": [{"source": "python:own:f", "weight": 1, "label": 0}], "reward.watch": ["code"]},
        "reward.others = [{'source': 'python:own:f', 'weight': 1.0, 'label': 0}]: a function takes only source",
    ),
    (
        {"reward.others": [{"source": "scratch", "weight": 1}]},
        "reward.others = [{'source': 'scratch', 'weight': 1.0}]: only reward.source can be scratch",
    ),
    (
        {"reward.source": "python:own:f"},
        "reward.source = 'python:own:f', reward.others = [], reward.watch = []: a Python scorer's code is checked in "
        "every repro: set reward.watch to [code]",
    ),
    (
        {"reward.watch": ["code"]},
        "reward.source = 'scratch', reward.others = [], reward.watch = ['code']: no scorer is a Python function, so",
    ),
    (
        {"reward.source": "python:own:f", "reward.watch": ["code", "code"]},
        "reward.watch = ['code', 'code']: code is named twice",
    ),
    ({"model.scratch.heads": 3}, "model.scratch.width = 64, model.scratch.heads = 3: heads must divide width"),
    ({"reward.scratch.heads": 5}, "reward.scratch.width = 64, reward.scratch.heads = 5: heads must divide width"),
    (
        {"prompts.tokens": 41},
        "prompts.tokens = 41, ppo.max_new_tokens = 24, model.scratch.context = 64: query and response take 65 tokens",
    ),
    ({"sft.tokens": 65}, "sft.tokens = 65, model.scratch.context = 64: SFT texts exceed the context"),
    ({"sft.micro_batch_size": 48}, "sft.batch_size = 64, sft.micro_batch_size = 48: micro_batch_size must divide"),
    ({"ppo.mini_batch_size": 96}, "ppo.batch_size = 128, ppo.mini_batch_size = 96: mini_batch_size must divide"),
    (
        {"ppo.micro_batch_size": 48},
        "ppo.mini_batch_size = 128, ppo.micro_batch_size = 48: micro_batch_size must divide",
    ),
    ({"ppo.min_new_tokens": 25}, "ppo.min_new_tokens = 25, ppo.max_new_tokens = 24: min exceeds max"),
    (
        {"ppo.min_counts_query": True, "prompts.tokens": 8, "ppo.min_new_tokens": 33},  # at most 8 + 24
        "ppo.min_new_tokens = 33, ppo.max_new_tokens = 24: min exceeds max",
    ),
    (
        {"risk.measure": "evar", "risk.hard_share": 0.5},
        "risk.hard_share = 0.5, risk.measure = 'evar': hard prompts are drawn more often only for measure cvar",
    ),
    ({"prompts.train": 127}, "prompts.train = 127, ppo.batch_size = 128: fewer queries than one batch"),
    (
        {"risk.warmup": 64, "ppo.iterations": 80, "risk.rho": 0.8},  # ceil(.8 x 80) = 64
        "risk.warmup = 64, risk.rho = 0.8, ppo.iterations = 80: the schedule reaches its end at iteration "
        "ceil(rho * iterations) = 64, before the warmup is over: raise rho or lower warmup",
    ),
]


@pytest.mark.parametrize(("edits", "message"), CLASHES, ids=lambda x: None if isinstance(x, str) else " ".join(x))
def test_values_that_clash_are_refused(edits: Edits, message: str, tmp_path: Path) -> None:
    assert [line for line in refusal(tmp_path, edits) if line.startswith(message)]


def test_every_rule_has_its_clash() -> None:
    tiny = Params.model_validate(plain(TINY))
    broken = set()
    for edits, _ in CLASHES:
        params = Params.model_validate(edited(plain(TINY), edits))
        broken |= {index for index, (holds, _, _) in enumerate(rules(params)) if not holds}
    assert broken == set(range(len(list(rules(tiny)))))


def test_a_clash_that_does_not_matter_is_none(tmp_path: Path) -> None:
    load_params(write(tmp_path, {"risk.measure": "none", "risk.warmup": 80}))
    load_params(write(tmp_path, {"model.source": "gpt2", "prompts.tokens": 100, "sft.tokens": 100}))
    files = {"data.source": "file", "data.path": "x", "prompts.train": 999_999_999, "prompts.test": 999_999_999}
    load_params(write(tmp_path, files | {"data.train_rows": None, "data.test_rows": None}))


def test_8_bit_activations_are_cautioned_against() -> None:
    def said(**model: object) -> list[str]:
        values = edited(
            plain(TINY), {"model.adapter": "lora"} | {f"model.{key}": value for key, value in model.items()}
        )
        return list(cautions(Params.model_validate(values)))

    assert said(quantization="none", int8_threshold=6.0) == []
    (line,) = said(quantization="int8", int8_threshold=6.0)
    assert line.startswith("model.quantization = 'int8', model.int8_threshold = 6: a log-probability depends on")


def test_limits_themselves_are_within_the_rules(tmp_path: Path) -> None:
    limits = {"prompts.tokens": 40, "ppo.max_new_tokens": 24, "sft.tokens": 64, "model.scratch.context": 64}
    load_params(write(tmp_path, limits | {"prompts.train": 128, "ppo.batch_size": 128}))
    load_params(write(tmp_path, {"prompts.train": 11800, "prompts.test": 2000, "seeds": list(range(100))}))


def test_all_bad_keys_are_named_at_once(tmp_path: Path) -> None:
    edits = {
        "risk.aplha": 0.3,
        "risk.alpha": MISSING,
        "ppo.lr": "fast",
        "kl.target": 0,
        "seeds": [1, -2],
        "runtime.threads": 2.0,
        "model.scratch.packing": 1,
        "data.splits": 3,
        "colour": "red",
    }
    lines = {line.partition(":")[0].partition(" = ")[0]: line for line in refusal(tmp_path, edits)}
    assert lines == {
        "risk.aplha": "risk.aplha: unknown key; did you mean risk.alpha?",
        "risk.alpha": "risk.alpha: missing; presets/tiny.yaml shows it with its unit and range",
        "ppo.lr": "ppo.lr = 'fast': should be a valid number",
        "kl.target": "kl.target = 0: should be greater than 0",
        "seeds.1": "seeds.1 = -2: should be greater than or equal to 0",
        "runtime.threads": "runtime.threads = 2.0: should be a valid integer",
        "model.scratch.packing": "model.scratch.packing = 1: should be a valid boolean",
        "data.splits": "data.splits = 3: should be a section, with keys of its own below it",
        "colour": "colour: unknown key",
    }


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("risk.alpha", 0, "risk.alpha = 0: should be greater than 0"),
        ("risk.alpha", 1.01, "risk.alpha = 1.01: should be less than or equal to 1"),
        ("ppo.lr", 1, "ppo.lr = 1: should be less than 1"),
        ("ppo.lr", True, "ppo.lr = True: should be a valid number"),
        ("ppo.max_ratio", 1.0, "ppo.max_ratio = 1.0: should be greater than 1"),
        ("ppo.temperature", 10.5, "ppo.temperature = 10.5: should be less than or equal to 10"),
        ("ppo.iterations", 1, "ppo.iterations = 1: should be greater than or equal to 2"),
        ("prompts.test", 19, "prompts.test = 19: should be greater than or equal to 20"),
        ("methods", ["sft", "rlhf"], f"methods = ['sft', 'rlhf']: {METHODS_FORM}"),
        ("methods", "sft", f"methods = 'sft': {METHODS_FORM}"),
        ("methods", None, "methods = None: should be a section, with keys of its own below it"),
        ("methods.ppo", ["rlhf"], "methods.ppo = ['rlhf']: should be a section, with keys of its own below it"),
        ("methods.start", ["best"], "methods.start.0 = 'best': should be 'base' or 'sft'"),
        ("methods.ppo", {"Mine": {}}, f"methods.ppo.Mine: {NAME_FORM}"),
        ("methods.ppo", {"m" * 41: {}}, f"methods.ppo.{'m' * 41}: {NAME_FORM}"),
        ("methods.ppo", {7: {}}, f"methods.ppo.7: {NAME_FORM}"),
        ("methods.ppo", {"mine": None}, "methods.ppo.mine = None: should be a section, with keys of its own below it"),
        ("methods.ppo", {"mine": {"alpha": 2.0}}, "methods.ppo.mine.alpha = 2.0: should be less than or equal to 1"),
        (
            "methods.ppo",
            {"mine": {"alhpa": 0.2}},
            "methods.ppo.mine.alhpa: unknown key; did you mean methods.ppo.mine.alpha?",
        ),
        (
            "risk.measure",
            "var",
            f"risk.measure = 'var': should be {', '.join(OTHER_MEASURES)} or {LAST_MEASURE}",
        ),
        ("reward.sign", 0, "reward.sign = 0: should be 1 or -1"),
        ("evaluate.bootstrap_draws", 1, "evaluate.bootstrap_draws = 1: should be greater than or equal to 2"),
        ("evaluate.like_kl", 0, "evaluate.like_kl = 0: should be greater than 0"),
        ("evaluate.like_kl_confidence", 1, "evaluate.like_kl_confidence = 1: should be less than 1"),
        ("evaluate.kl_limit", 0.9, "evaluate.kl_limit = 0.9: should be greater than or equal to 1"),
        ("evaluate.tail_threshold", float("nan"), "evaluate.tail_threshold = nan: should be a finite number"),
        ("ppo.value_clip", float("inf"), "ppo.value_clip = inf: should be a finite number"),
        ("sft.epochs", "inf", "sft.epochs = inf: should be a finite number"),
        ("ppo.iterations", 10**12, "ppo.iterations = 1000000000000: should be less than or equal to 1000000"),
        ("prompts.train", 10**15, "prompts.train = 1000000000000000: should be less than or equal to 1000000000"),
        ("seeds", list(range(1000)), "seeds = [0, 1, 2, 3, 4, 5, ...]: should have at most 100 items"),
        ("seeds", [2**63], "seeds.0 = 9223372036854775808: should be less than or equal to 9223372036854775807"),
        ("seeds", 1, "seeds = 1: should be a list, as in [1, 2, 3]"),
        ("kl", None, "kl = None: should be a section, with keys of its own below it"),
        ("runtime.device", "x" * 999, f"runtime.device = '{'x' * 47}...{'x' * 48}': should be 'cpu', 'cuda' or 'auto'"),
        ("seeds", [], "seeds = []: should have at least 1 item"),
        ("preset", "../x", "preset = '../x': should match pattern '^[A-Za-z0-9][A-Za-z0-9_.-]*$'"),
    ],
)
def test_values_out_of_range_are_refused_with_the_rule(key: str, value: object, line: str, tmp_path: Path) -> None:
    assert refusal(tmp_path, {key: value}) == [line]


def modules() -> str:
    """The code and the pipeline's description, without the params model, which reads every key to check it."""
    paths = [path for name in ("rarlhf", "tasks", "flows") for path in (REPOSITORY / name).rglob("*.py")]
    texts = [path.read_text(encoding="utf-8") for path in paths if path.stem not in ("params", "rules")]
    return "\n".join([*texts, (REPOSITORY / "dvc.yaml").read_text(encoding="utf-8")])


def test_every_key_is_read_somewhere() -> None:
    code = modules()
    unread = [key for key in leaves(plain(TINY)) if not re.search(rf"\.{key.rpartition('.')[2]}\b", code)]
    assert unread == []


def test_every_section_is_closed_and_strict() -> None:
    def sections(section: type[Section]) -> Iterator[type[Section]]:
        yield section
        for field in section.model_fields.values():
            if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
                yield from sections(field.annotation)

    for section in sections(Params):
        assert section.model_config["extra"] == "forbid"
        assert section.model_config["frozen"]
        assert all(field.is_required() for field in section.model_fields.values()), "no default stands in the code"
