"""From settings to rules: every rule is there, and what a rule lacks is one line."""

from typing import get_args

import pytest
from transformers import GPT2LMHeadModel, PreTrainedTokenizerBase

from rarlhf.config.baselines import DECODED, GUIDED, HEADED, DecodingParams
from rarlhf.config.errors import UserError
from rarlhf.config.fields import Section
from rarlhf.config.params import Params
from rarlhf.decoding.choice import RULES, Parts, build_rule
from rarlhf.decoding.draws import BestOfN, Rejection, SoftRejection
from rarlhf.decoding.reweighted import DExperts, GeDi, Prompted, SelfDebias
from rarlhf.decoding.rules import DecodingRule
from rarlhf.models.episodes import Episodes
from rarlhf.models.reference import frozen

KINDS = {
    "prompted": Prompted,
    "best_of_n": BestOfN,
    "rejection": Rejection,
    "soft_rejection": SoftRejection,
    "self_debias": SelfDebias,
    "dexperts": DExperts,
    "gedi": GeDi,
}
PLANNED = {"rejection": {"threshold": 1.0}, "soft_rejection": {"eta": 1.0, "kl_coef": 2.0}}


def settings(params: Params, name: str) -> Section:
    section: Section = getattr(params.decoding, name)
    return section.model_copy(update=PLANNED.get(name, {}))


def no_score(_: Episodes) -> None:
    raise AssertionError("nothing is scored while a rule is made")


def test_every_section_of_decoding_has_a_rule() -> None:
    kinds = [field.annotation for field in DecodingParams.model_fields.values()]
    assert set(kinds) == set(RULES)
    assert set(KINDS) == {*DECODED, *GUIDED}
    assert {*DECODED, *GUIDED, *HEADED} == set(DecodingParams.model_fields)
    assert not any(get_args(kind) for kind in kinds)


@pytest.mark.parametrize("name", KINDS)
def test_a_rule_is_made_of_its_settings(
    name: str, params: Params, lm: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    models = [frozen(lm)] * 2 if name in GUIDED else []
    chosen = settings(params, name)
    rule = build_rule(chosen, Parts(tokenizer, frozen(lm), no_score, *models))  # type: ignore[arg-type]
    assert type(rule) is KINDS[name]
    assert rule.draws == getattr(chosen, "n", 1)
    assert rule.reshapes is (name not in {"best_of_n", "rejection", "soft_rejection"})
    assert rule.by_chance is (name == "soft_rejection")


def test_texts_before_a_prompt_are_tokens_without_an_end(
    params: Params, lm: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    parts = Parts(tokenizer, frozen(lm))
    told = build_rule(params.decoding.prompted.model_copy(update={"instruction": "the film"}), parts)
    assert isinstance(told, Prompted)
    assert told.instruction == tokenizer("the film")["input_ids"]
    named = params.decoding.self_debias.model_copy(update={"template": "a {} plot", "attributes": ["weak", "old"]})
    debias = build_rule(named, parts)
    assert isinstance(debias, SelfDebias)
    assert [tokenizer.decode(prefix) for prefix in debias.prefixes] == ["a weak plot", "a old plot"]

    class Ending:
        """A tokenizer that ends every text, as T5's does."""

        eos_token_id = 0

        def __call__(self, text: str) -> dict[str, list[int]]:
            return {"input_ids": [*tokenizer(text)["input_ids"], 0]}

    ending = build_rule(
        params.decoding.prompted.model_copy(update={"instruction": "the film"}), Parts(Ending(), frozen(lm))
    )  # type: ignore[arg-type]
    assert isinstance(ending, Prompted)
    assert ending.instruction == told.instruction


@pytest.mark.parametrize("name", ["best_of_n", "rejection", "soft_rejection"])
def test_a_rule_that_chooses_needs_a_scorer(
    name: str, params: Params, lm: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    with pytest.raises(UserError, match="this rule chooses among draws by their score, so it needs a scorer"):
        build_rule(settings(params, name), Parts(tokenizer, frozen(lm)))


@pytest.mark.parametrize("name", GUIDED)
def test_a_guided_rule_needs_both_experts_of_one_vocabulary(
    name: str, params: Params, lm: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    own = frozen(lm)
    for experts in ((), (own,), (None, own)):
        with pytest.raises(UserError, match="so it needs two further models"):
            build_rule(settings(params, name), Parts(tokenizer, own, None, *experts))
    wide = GPT2LMHeadModel(type(lm.config)(**lm.config.to_dict() | {"vocab_size": 300}))
    for experts, sizes in {(own, frozen(wide)): "280, 280, 300", (frozen(wide), own): "280, 300, 280"}.items():
        with pytest.raises(UserError, match=f"have logits for {sizes} tokens; take models of one vocabulary"):
            build_rule(settings(params, name), Parts(tokenizer, own, None, *experts))


def test_settings_without_a_rule_are_a_mistake_in_the_code(
    params: Params, lm: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    with pytest.raises(ValueError, match="no decoding rule has settings of the kind RiskParams"):
        build_rule(params.risk, Parts(tokenizer, frozen(lm)))
    assert not DecodingRule.by_chance
