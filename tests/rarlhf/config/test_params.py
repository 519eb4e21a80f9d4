"""params.yaml: presets, every refusal, and that no key is without use."""

import math
import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import get_args

import pytest

from rarlhf.config.exact import final_level
from rarlhf.config.fields import Section
from rarlhf.config.load import checked, load_params
from rarlhf.config.params import Params, RiskParams
from rarlhf.config.rules import cautions
from rarlhf.risk.plan import TRUSTED
from tests.rarlhf.config.edits import MISSING, REPOSITORY, TINY, accepted, leaves, plain, refusal, refusal_of_file

PRESETS = sorted(path.stem for path in (REPOSITORY / "presets").glob("*.yaml"))
*OTHER_MEASURES, LAST_MEASURE = map(repr, get_args(RiskParams.model_fields["measure"].annotation))


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_loads_and_has_the_keys_of_tiny(preset: str, tmp_path: Path) -> None:
    values = plain((REPOSITORY / "presets" / f"{preset}.yaml").read_text(encoding="utf-8"))
    keys, tiny = list(leaves(values)), list(leaves(plain(TINY)))
    if "mixture" in preset:  # these compare other methods, and one names tasks
        keys, tiny = (
            [key for key in some if not key.startswith(("methods.", "utility.fewshot"))] for some in (keys, tiny)
        )
    assert keys == tiny
    if values["data"]["source"] == "file" and values["data"]["path"] is None:
        values["data"]["path"] = "data/files"
    params = checked(values, Path("params.yaml"))
    assert params.preset == preset
    assert list(cautions(params)) == []


def test_values_come_as_they_are_written_and_are_frozen() -> None:
    params = load_params(REPOSITORY / "presets" / "tiny.yaml")
    assert params.model_dump(mode="json") == plain(TINY)
    with pytest.raises(ValueError, match="frozen"):
        params.risk.alpha = 0.5


def test_a_level_is_the_rational_that_was_written() -> None:
    risk = accepted({"risk.alpha": 0.28}).risk
    assert final_level(risk.measure, risk.alpha) == Fraction(7, 25)
    assert final_level("entropic", risk.alpha) == 1


@pytest.mark.parametrize("text", ["1e-05", "1E-5", "0.00001"])
def test_numbers_that_yaml_leaves_as_text_are_numbers(text: str, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(re.sub(r"^(ppo:(\n  .*)*?\n  lr:) \S+", rf'\1 "{text}"', TINY, count=1, flags=re.M))
    assert load_params(path).ppo.lr == 1e-5


NAME_FORM = "the name should be lower-case letters, digits and _, begin with a letter, and have at most 40 characters"
METHODS_FORM = "is now start: [...] and ppo: {...}; presets/tiny.yaml shows the form"


def test_limits_themselves_are_within_the_rules() -> None:
    limits = {"prompts.tokens": 40, "ppo.max_new_tokens": 24, "sft.tokens": 64, "model.scratch.context": 64}
    accepted(limits | {"prompts.train": 128, "ppo.batch_size": 128, "plan.train.prompts": 128})
    accepted({"prompts.train": 11800, "prompts.test": 2000, "seeds": list(range(100))})


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
    lines = {line.partition(":")[0].partition(" = ")[0]: line for line in refusal_of_file(tmp_path, edits)}
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
def test_values_out_of_range_are_refused_with_the_rule(key: str, value: object, line: str) -> None:
    assert refusal({key: value}) == [line]


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


@pytest.mark.parametrize("preset", [name for name in PRESETS if name == "tiny" or name.endswith("-scratch")])
def test_the_plans_answers_show_the_kl_that_is_wanted(preset: str) -> None:
    """Otherwise a plan stops below `kl.target`, with a warning, and its eta belongs to another policy."""
    values = plain((REPOSITORY / "presets" / f"{preset}.yaml").read_text(encoding="utf-8"))
    assert TRUSTED * math.log(values["plan"]["train"]["samples"]) >= values["kl"]["target"]


@pytest.mark.parametrize("preset", [name for name in PRESETS if "mixture" in name])
def test_a_mixture_is_learnt_and_measured_whole(preset: str) -> None:
    values = plain((REPOSITORY / "presets" / f"{preset}.yaml").read_text(encoding="utf-8"))
    assert values["data"]["wanted_share"] == {"train": 0.5, "test": 0.5}
    assert (values["sft"]["texts"], values["prompts"]["perplexity_texts"]) == ("all", "all")
    methods = values["methods"]
    assert [*methods["start"], *methods["ppo"], *methods["tuned"], *methods["headed"]] == [
        *("base", "sft", "rlhf", "filtering", "sequential", "parallel", "adaptive", "nado")
    ]
    named = [values["model"], values["reward"], values["data"]]
    hub = [part for part in named if part["source"] == "hub" or "/" in part["source"]]
    assert all(re.fullmatch("[0-9a-f]{40}", part["revision"]) for part in hub)
