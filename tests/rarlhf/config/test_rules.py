"""Every rule between values is broken once and refused; choices that make results worse are said."""

import pytest

from rarlhf.config.params import Params
from rarlhf.config.rules import cautions, rules
from tests.rarlhf.config.clashes import CLASHES, HEADS
from tests.rarlhf.config.edits import Edits, accepted, refusal, tiny


@pytest.mark.parametrize(("edits", "message"), CLASHES, ids=lambda x: None if isinstance(x, str) else " ".join(x))
def test_values_that_clash_are_refused(edits: Edits, message: str) -> None:
    assert [line for line in refusal(edits) if line.startswith(message)]


HEADED = {"rule": "nado", "of": "sft", "head": "worth"}


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        ({"methods.headed": {"x": HEADED | {"factor": -1}}}, "methods.headed.x.factor = -1: should be greater than or"),
        (
            {"methods.headed": {"x": HEADED | {"rule": "rect", "eps": 1}}},
            "methods.headed.x.eps = 1: should be less than 1",
        ),
        ({"methods.headed": {"x": HEADED | {"eps": 0.1}}}, "methods.headed.x.eps: unknown key"),
        (
            {"methods.headed": {"x": {"rule": "nado", "of": "sft"}}},
            "methods.headed.x = {'of': 'sft', 'rule': 'nado'}: name h",
        ),
        (
            {"methods.headed": {"x": HEADED | {"rule": "gedi"}}},
            "methods.headed.x = {'head': 'worth', 'of': 'sft', 'rule': 'gedi'}: rule is one of nado, rect",
        ),
        (
            {"methods.heads": {"worth": {"consistency": -1}}},
            "methods.heads.worth.consistency = -1: should be greater than",
        ),
        (
            {"methods.heads": {"worth": {"consistncy": 1}}},
            "methods.heads.worth.consistncy: unknown key; did you mean methods.heads.worth.consistency?",
        ),
        (
            {"methods.heads": {"worth": {"labels": "warm"}}},
            "methods.heads.worth.labels = 'warm': should be 'hard' or 'soft'",
        ),
    ],
)
def test_entries_of_heads_and_their_rules_are_refused(edits: Edits, message: str) -> None:
    (line,) = refusal({"methods.heads": HEADS} | edits)
    assert line.startswith(message)


def test_every_rule_has_its_clash() -> None:
    one = {"methods.ppo": {"one": {"measure": "none"}}, "methods.fit": {"two": {"measure": "none"}}}  # entry of each
    one |= {"methods.heads": {"three": {}}, "methods.headed": {"four": {"rule": "nado", "of": "sft", "head": "three"}}}
    unbroken = Params.model_validate(tiny(one))
    broken = set()
    others = {
        "methods.tuned",
        "methods.decoded",
        "methods.guided",
    }  # whose rules are as many as their entries are of a kind
    for edits in (edits for edits, _ in CLASHES if others.isdisjoint(edits)):
        params = Params.model_validate(tiny(one | edits))
        broken |= {index for index, (holds, _, _) in enumerate(rules(params)) if not holds}
    assert broken == set(range(len(list(rules(unbroken)))))


def test_a_clash_that_does_not_matter_is_none() -> None:
    accepted({"risk.measure": "none", "risk.warmup": 80, "methods.ppo": {}})
    accepted({"model.source": "gpt2", "prompts.tokens": 100, "sft.tokens": 100})
    keeps_all = {"rlhf": {"measure": "none"}, "tail": {"measure": "cvar_ru", "of": "score"}}
    for key, value in (("risk.ranking", "random"), ("risk.dropped", "pay_kl")):
        accepted({"methods.ppo": keeps_all, key: value})
    planned = {"risk.measure": "mean_cvar", "risk.of": "score", "risk.eta": "plan"}
    hard = {"ra_rlhf": {"measure": "cvar", "of": "return"}, "number": {"eta": 1.5, "of": "return"}}
    accepted(planned | {"methods.ppo": hard, "methods.fit": {"fit": {"eta": -2}}})
    files = {"data.source": "file", "data.path": "x", "prompts.train": 999_999_999, "prompts.test": 999_999_999}
    accepted(files | {"data.train_rows": None, "data.test_rows": None})


def test_8_bit_activations_are_cautioned_against() -> None:
    def said(**model: object) -> list[str]:
        values = tiny({"model.adapter": "lora"} | {f"model.{key}": value for key, value in model.items()})
        return list(cautions(Params.model_validate(values)))

    assert said(quantization="none", int8_threshold=6.0) == []
    (line,) = said(quantization="int8", int8_threshold=6.0)
    assert line.startswith("model.quantization = 'int8', model.int8_threshold = 6: a log-probability depends on")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            {"data.columns.text": "prompt.text", "data.columns.prompt": None},
            "data.columns.text = 'prompt.text': SFT",
        ),
        (
            {"data.columns.text": "line", "data.columns.prompt": "line"},
            "data.columns.text = 'line': SFT texts are bare prompts",
        ),
        ({"sft.tokens": 8, "prompts.tokens": 8}, "sft.tokens = 8, prompts.tokens = 8: SFT texts are no longer than"),
        ({"sft.tokens": 9, "prompts.tokens": 8}, None),
        ({"sft.tokens": 8, "prompts.tokens": 8, "sft.end_of_text": False}, None),
        ({"sft.tokens": 8, "prompts.tokens": 8, "sft.epochs": 0}, None),
        ({"sft.tokens": 8, "prompts.tokens": 8, "prompts.chat_template": True}, None),
    ],
)
def test_it_is_said_where_sft_would_teach_to_stop(values: Edits, said: str | None) -> None:
    lines = list(cautions(Params.model_validate(tiny({"sft.end_of_text": True} | values))))
    assert len(lines) == bool(said)
    assert all(line.startswith(said) and "sft.end_of_text to false" in line for line in lines)
