"""Entries of methods.tuned, methods.decoded and methods.guided: what is read of them, and every refusal in one line."""

import pytest

from rarlhf.config.baselines import (
    CHOICES,
    DecodingParams,
    DExpertsParams,
    RegularisedParams,
    RejectionParams,
    TuningParams,
)
from rarlhf.config.methods import LOOKS, methods_of
from tests.rarlhf.config.edits import TINY, Edits, accepted, plain, refusal

BEST = {"rule": "best_of_n", "of": "sft"}
GUIDED = {"rule": "dexperts", "of": "sft", "expert": "rlhf", "anti_expert": "base"}
REGULARISED = {"by": "regularised"}
MODELS = "name one of the methods that are models (base, sft, cvar_rlhf, "


def test_an_entry_changes_its_own_section_alone() -> None:
    methods = {
        "methods.tuned": {"expert": {"by": "supervised", "texts": "wanted"}},
        "methods.decoded": {"strict": {"rule": "rejection", "of": "rlhf", "threshold": 2}, "best": BEST},
        "methods.guided": {"steered": {**GUIDED, "expert": "expert", "alpha": 1.5}},
    }
    params = accepted(methods)
    strict, steered = params.chosen_of("strict"), params.chosen_of("steered")
    assert strict.settings == RejectionParams(n=32, threshold=2.0)
    assert strict.models == {"of": "rlhf"}
    assert steered.settings == DExpertsParams(alpha=1.5, top_p=0.9)
    assert steered.models == {"of": "sft", "expert": "expert", "anti_expert": "base"}
    assert params.decoding.rejection.threshold == "plan"
    made = {method.name: method for method in methods_of(params)}
    assert [made[name].has_model for name in ("expert", "strict", "steered")] == [True, False, False]
    assert [made[name].per_seed for name in ("expert", "strict", "steered")] == [True, False, False]
    assert list(made)[-4:] == ["expert", "best", "strict", "steered"]


def test_a_training_s_head_is_section_head_with_its_changes() -> None:
    methods = {"x": {"by": "regularised", "head": {"labels": "soft", "alpha": 0.3}}, "y": {"by": "regularised"}}
    params = accepted({"methods.tuned": methods, "tuning.regularised.head": {"layers": 0}})
    first, second = (params.chosen_of(name).settings for name in "xy")
    assert isinstance(first, RegularisedParams)
    assert isinstance(second, RegularisedParams)
    own = params.head.model_dump(mode="json")
    assert first.head == own | {"labels": "soft", "alpha": 0.3}  # the entry's changes stand for the section's
    assert second.head == own | {"layers": 0}
    assert params.tuning.regularised.head == {"layers": 0}


def test_every_rule_and_training_has_its_section() -> None:
    assert set(CHOICES["decoded"]) | set(CHOICES["guided"]) | set(CHOICES["headed"]) == set(DecodingParams.model_fields)
    assert set(CHOICES["tuned"]) == set(TuningParams.model_fields)
    assert {"tuning", "decoding"} <= set(plain(TINY))
    assert set(DecodingParams.model_fields) <= set(LOOKS)  # each has a label and a colour


REFUSED: list[tuple[Edits, str]] = [
    ({"methods.decoded": {"x": {"of": "sft"}}}, "methods.decoded.x = {'of': 'sft'}: name rule"),
    ({"methods.decoded": {"x": {"rule": "best_of_n"}}}, "methods.decoded.x = {'rule': 'best_of_n'}: name of"),
    ({"methods.decoded": {"x": {"rule": 3, "of": "sft"}}}, "methods.decoded.x = {'of': 'sft', 'rule': 3}: name rule"),
    ({"methods.tuned": {"x": {}}}, "methods.tuned.x = {}: name by"),
    (
        {"methods.guided": {"x": {"rule": "dexperts", "of": "sft"}}},
        "methods.guided.x = {'of': 'sft', 'rule': 'dexperts'}: name expert and anti_expert",
    ),
    (
        {"methods.decoded": {"x": {**BEST, "rule": "best"}}},
        "methods.decoded.x = {'of': 'sft', 'rule': 'best'}: rule is one of prompted, best_of_n, rejection, soft_reje",
    ),
    (
        {"methods.decoded": {"x": {**BEST, "rule": "dexperts"}}},
        "methods.decoded.x = {'of': 'sft', 'rule': 'dexperts'}: rule is one of prompted, best_of_n, rejection, soft_",
    ),
    (
        {"methods.tuned": {"x": {"by": "sft"}}},
        "methods.tuned.x = {'by': 'sft'}: by is one of supervised, quark, regularised",
    ),
    (
        {"methods.decoded": {"x": {**BEST, "of": "rloo"}}},
        "methods.decoded.x = {'of': 'rloo', 'rule': 'best_of_n'}: of = rloo: " + MODELS,
    ),
    (
        {"methods.decoded": {"x": BEST, "y": {**BEST, "of": "x"}}},  # a rule on a rule
        "methods.decoded.y = {'of': 'x', 'rule': 'best_of_n'}: of = x: " + MODELS,
    ),
    (
        {"methods.guided": {"x": {**GUIDED, "anti_expert": "toxic"}}},
        "methods.guided.x = {'anti_expert': 'toxic', 'expert': 'rlhf', 'of': 'sft', 'rule': 'dexperts'}: "
        "anti_expert = toxic: " + MODELS,
    ),
    (
        {"methods.guided": {"x": {**GUIDED, "alpha": -1}}},
        "methods.guided.x.alpha = -1: should be greater than or equal",
    ),
    ({"methods.decoded": {"x": {**BEST, "n": 0}}}, "methods.decoded.x.n = 0: should be greater than or equal to 1"),
    (
        {"methods.decoded": {"x": {**BEST, "m": 4}}},
        "methods.decoded.x.m: unknown key; did you mean methods.decoded.x.n",
    ),
    (
        {"methods.decoded": {"x": {"rule": "rejection", "of": "sft", "threshold": "high"}}},
        "methods.decoded.x.threshold = 'high': should be",
    ),
    (
        {"methods.tuned": {"x": {"by": "supervised", "texts": "good"}}},
        "methods.tuned.x.texts = 'good': should be 'above',",
    ),
    ({"decoding.best_of_n.n": 0}, "decoding.best_of_n.n = 0: should be greater than or equal to 1"),
    ({"decoding.self_debias.template": "no place"}, "decoding.self_debias.template = 'no place': should match pattern"),
    ({"decoding.dexperts.beta": 1}, "decoding.dexperts.beta: unknown key"),
    (
        {"methods.decoded": {"x": {"rule": "prompted", "of": "sft"}}, "prompts.chat_template": True},
        "methods.decoded.x = {'of': 'sft', 'rule': 'prompted'}, prompts.chat_template = True: a text before the prompt",
    ),
    (
        {"methods.decoded": {"x": {"rule": "self_debias", "of": "sft"}}, "prompts.chat_template": True},
        "methods.decoded.x = {'of': 'sft', 'rule': 'self_debias'}, prompts.chat_template = True: a text before",
    ),
    ({"methods.ppo": {"x": {}}, "methods.decoded": {"x": BEST}}, "methods.ppo = {'x': {}}, methods.decoded = {'x': {"),
    ({"methods.tuned": {"x": {"by": "supervised"}}, "methods.guided": {"x": GUIDED}}, "methods.tuned = {'x': {'by': "),
    ({"methods.fit": {"x": {"measure": "none"}}, "methods.tuned": {"x": {"by": "quark"}}}, "methods.fit = {'x': {"),
    (
        {"methods.decoded": {"sft": BEST}},
        "methods.decoded = {'sft': {'of': 'sft', 'rule': 'best_of_n'}}: another stage",
    ),
    (
        {"methods.tuned": {"x": {"by": "supervised"}}, "sft.epochs": 0},
        "methods.tuned.x = {'by': 'supervised'}, sft.epochs = 0.0: it trains as section sft says: set epochs above 0",
    ),
    (
        {"methods.tuned": {"x": {"by": "supervised", "texts": "below", "quantile": 0}}},
        "methods.tuned.x = {'by': 'supervised', 'quantile': 0, 'texts': 'below'}: no row is below the quantile 0",
    ),
    (
        {"methods.tuned": {"x": {"by": "quark"}}, "tuning.quark.prompts": 3201},
        "methods.tuned.x = {'by': 'quark'}, tuning.quark.prompts = 3201, prompts.train = 3200: more prompts than there",
    ),
    (
        {"methods.tuned": {"x": {"by": "quark", "batch_size": 100}}},
        "methods.tuned.x = {'batch_size': 100, 'by': 'quark'}, tuning.quark.batch_size = 128, ",
    ),
    ({"tuning.regularised.penalty": -1}, "tuning.regularised.penalty = -1: should be greater than or equal to 0"),
    ({"tuning.regularised.rounds": 0}, "tuning.regularised.rounds = 0: should be greater than or equal to 1"),
    ({"tuning.regularised.lag": 2}, "tuning.regularised.lag = 2: should be 0 or 1"),
    ({"tuning.regularised.related_quantile": 0}, "tuning.regularised.related_quantile = 0: should be greater than 0"),
    ({"methods.tuned": {"x": {**REGULARISED, "penalty": -0.5}}}, "methods.tuned.x.penalty = -0.5: should be greater"),
    (
        {"methods.tuned": {"x": {**REGULARISED, "related": "row"}}},
        "methods.tuned.x.related = 'row': should be 'all', 'prompt' or 'label'",
    ),
    (
        {"methods.tuned": {"x": {**REGULARISED, "head": {"quantile": 1.5}}}},
        "methods.tuned.x.head.quantile = 1.5: should be less than 1",
    ),
    ({"methods.tuned": {"x": {**REGULARISED, "head": {"layer": 1}}}}, "methods.tuned.x.head.layer: unknown key"),
    ({"methods.tuned": {"x": {**REGULARISED, "head": "good"}}}, "methods.tuned.x.head = 'good': should be a section"),
    (
        {"methods.tuned": {"x": {**REGULARISED, "head": {"quantile": 0}}}},
        "methods.tuned.x = {'by': 'regularised', 'head': {'quantile': 0}}, head.quantile = 0.5: every score is at or",
    ),
    (
        {"methods.tuned": {"x": {**REGULARISED, "head": {"heads": 5}}}},
        "methods.tuned.x = {'by': 'regularised', 'head': {'heads': 5}}, head.heads = ",
    ),
    (
        {"methods.tuned": {"x": REGULARISED}, "tuning.regularised.prompts": 3201},
        "methods.tuned.x = {'by': 'regularised'}, tuning.regularised.prompts = 3201, prompts.train = 3200: more prom",
    ),
    (
        {"methods.tuned": {"x": REGULARISED}, "sft.tokens": 8},
        "methods.tuned.x = {'by': 'regularised'}, sft.tokens = 8, prompts.tokens = 8: the penalty is on tokens behind",
    ),
    (
        {"methods.tuned": {"x": REGULARISED}, "prompts.chat_template": True},
        "methods.tuned.x = {'by': 'regularised'}, prompts.chat_template = True: the penalty is on plain texts",
    ),
    (
        {"methods.tuned": {"x": REGULARISED}, "sft.epochs": 0},
        "methods.tuned.x = {'by': 'regularised'}, sft.epochs = 0.0: it trains as section sft says: set epochs above 0",
    ),
    ({"sft.texts": "unwanted"}, "sft.texts = 'unwanted': should be 'wanted' or 'all'"),
    ({"prompts.perplexity_texts": "test"}, "prompts.perplexity_texts = 'test': should be 'wanted' or 'all'"),
    (
        {"methods.ppo": {"many": {"measure": "none", "responses": 3}}},
        "methods.ppo.many = {'measure': 'none', 'responses': 3}, ppo.batch_size = 128: responses must divide",
    ),
    (
        {"methods.ppo": {"alone": {"measure": "none", "baseline": "query", "responses": 1}}},
        "methods.ppo.alone = {'baseline': 'query', 'measure': 'none', 'responses': 1}: the baseline is the mean of a",
    ),
    (
        {"methods.ppo": {"x": {"respones": 4}}},
        "methods.ppo.x.respones: unknown key; did you mean methods.ppo.x.responses",
    ),
    ({"methods.ppo": {"x": {"lr": 0.1}}}, "methods.ppo.x.lr: unknown key"),
    ({"methods.fit": {"x": {"responses": 4}}}, "methods.fit.x.responses: unknown key"),
]


@pytest.mark.parametrize(("edits", "message"), REFUSED, ids=[message[:60] for _, message in REFUSED])
def test_a_wrong_entry_is_one_line(edits: Edits, message: str) -> None:
    lines = refusal(edits)
    assert [line for line in lines if line.startswith(message)], lines


def test_texts_of_a_class_need_labels_or_a_quantile() -> None:
    edits: Edits = {
        "methods.tuned": {"x": {"by": "supervised", "texts": "wanted"}},
        "data.source": "file",
        "data.path": "x",
        "data.columns.label": None,
        "data.columns.text": "text",
        "reward.source": "a/b",
        "judge.second_scorer.source": "none",
        "prompts.wanted_quantile": 0.0,
    }
    lines = refusal(edits)
    assert any("without labels a quantile divides the rows in classes" in line for line in lines), lines
    accepted(edits | {"prompts.wanted_quantile": 0.5})
    by_label: Edits = {"methods.tuned": {"x": {"by": "regularised", "related": "label"}}}
    assert any("or take related: all or prompt" in line for line in refusal(edits | by_label))
    accepted(edits | {"methods.tuned": {"x": REGULARISED}})
    bare = {"data.columns.text": None, "data.columns.prompt": "prompt", "prompts.wanted_quantile": 0.5}
    assert any("it learns whole texts, and the data has prompts alone" in line for line in refusal(edits | bare))
