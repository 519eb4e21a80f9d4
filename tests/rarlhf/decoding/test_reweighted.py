"""Rules that change the next-token distribution, against slow loops over full passes and against hand numbers."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from math import exp, log

import pytest
import torch
from torch import Tensor
from transformers import GPT2LMHeadModel

from rarlhf.config.baselines import DExpertsParams, GeDiParams, SelfDebiasParams
from rarlhf.decoding.prompts import Prompts, left_pad
from rarlhf.decoding.reweighted import DExperts, GeDi, Prompted, SelfDebias, _Classified, _Debiased, _Steered, nucleus
from rarlhf.decoding.rules import DecodingRule
from rarlhf.decoding.sampling import Decoding, Responses, draw, random_numbers
from rarlhf.models.policy import Sampling
from rarlhf.models.reference import frozen

CPU = torch.device("cpu")
SAMPLING = Sampling(temperature=0.9, min_new_tokens=2, max_new_tokens=6, end_id=0)
QUERIES = [[5, 6, 7], [8], [9, 10], [5, 5, 5], [11], [12, 13], [14], [15, 16, 17], [18], [19, 20], [40], [41, 42]]
PROMPTS = left_pad(QUERIES, 0, CPU)
NUMBERS = random_numbers(("reweighted", 1), (len(QUERIES), 6))
INSTRUCTION = [21, 22]
PREFIXES = [[31, 32, 33], [34]]
DEBIASED = SelfDebiasParams(template="{}", attributes=["a", "b"], decay=50, floor=0.01)
GEDI = GeDiParams(omega=3, scale=1.5, bias=0.3, remove=0.4, keep_above=0.6)
Naive = Callable[[list[int], list[int]], Tensor]


@pytest.fixture
def lm(lm: GPT2LMHeadModel) -> GPT2LMHeadModel:
    """The shared model, which ends its texts sooner."""
    with torch.no_grad():
        lm.transformer.ln_f.bias.mul_(1.5)
    return lm


@pytest.fixture
def models(lm: GPT2LMHeadModel) -> list[GPT2LMHeadModel]:
    """The model that is decoded, and two that are a little unlike it."""
    others = [deepcopy(lm), deepcopy(lm)]
    with torch.no_grad():
        for factor, other in zip((1.3, 0.7), others, strict=True):
            other.transformer.h[0].attn.c_proj.weight.mul_(factor)
            other.transformer.h[1].mlp.c_proj.weight.mul_(factor)
    return [lm, *others]


@torch.no_grad()
def logits_after(lm: GPT2LMHeadModel, text: list[int]) -> Tensor:
    """(V,) of a full pass over one bare text: no cache, no padding, no batch."""
    return lm(torch.tensor([text])).logits[0, -1].double()


def without_end(logits: Tensor, said: list[int]) -> Tensor:
    """The logits, with the end of text out as long as the response is too short."""
    allowed = logits.clone()
    if len(said) < SAMPLING.min_new_tokens:
        allowed[SAMPLING.end_id] = -torch.inf
    return allowed


def drawn(lm: GPT2LMHeadModel, rule: DecodingRule | None) -> Responses:
    return draw(Decoding(lm, SAMPLING, rule), PROMPTS, NUMBERS)


def assert_drawn_from(made: Responses, naive: Naive) -> None:
    """That every token has the probability that the slow loop gives it, and belongs to the prompt alone."""
    assert torch.equal(made.episodes.queries, PROMPTS.tokens)
    assert torch.equal(made.episodes.query_mask, PROMPTS.mask)
    for query, *row in zip(QUERIES, made.episodes.responses, made.episodes.response_mask, made.logprobs, strict=True):
        response, mask, logprobs = row
        ids = response[mask].tolist()
        for t, token in enumerate(ids):
            expected = (naive(query, ids[:t]) / SAMPLING.temperature).log_softmax(dim=0)[token]
            assert float(logprobs[t]) == pytest.approx(float(expected), abs=2e-4)


def assert_same(one: Responses, other: Responses, to_the_bit: bool) -> None:
    assert all(torch.equal(a, b) for a, b in zip(one.episodes, other.episodes, strict=True))
    if to_the_bit:
        assert torch.equal(one.logprobs, other.logprobs)
    else:
        torch.testing.assert_close(one.logprobs, other.logprobs, atol=1e-5, rtol=0)


def assert_unlike(one: Responses, other: Responses) -> None:
    assert one.episodes.responses.tolist() != other.episodes.responses.tolist()


def test_prompts_behind_a_prefix_by_hand() -> None:
    behind = left_pad([[1, 2], [3]], 9, CPU).behind([7, 8])
    assert behind.tokens[behind.mask].tolist() == [7, 8, 1, 2, 7, 8, 3]
    assert behind.mask.tolist() == [[True] * 4, [False, True, True, True]]
    assert PROMPTS.behind([]) is PROMPTS


def test_an_instruction_conditions_and_is_no_part_of_the_episode(lm: GPT2LMHeadModel) -> None:
    made = drawn(lm, Prompted(INSTRUCTION))
    assert_drawn_from(made, lambda query, said: without_end(logits_after(lm, [*INSTRUCTION, *query, *said]), said))
    assert_unlike(made, drawn(lm, None))
    assert_same(drawn(lm, Prompted([])), drawn(lm, None), to_the_bit=True)


def debiased(own: Tensor, biased: Sequence[Tensor], params: SelfDebiasParams) -> list[float]:
    """Logits token by token, as the article writes them."""
    p, others = own.softmax(dim=0).tolist(), [one.softmax(dim=0).tolist() for one in biased]
    logits = []
    for v, chance in enumerate(p):
        excess = max(max(other[v] for other in others) - chance, 0.0)
        factor = max(exp(-params.decay * excess), params.floor)
        logits.append(log(chance * factor) if chance > 0 else -torch.inf)
    return logits


@pytest.mark.parametrize("decay", [3, 50])
def test_self_debias_is_the_loop_of_the_article(decay: float, lm: GPT2LMHeadModel) -> None:
    params = DEBIASED.model_copy(update={"decay": float(decay)})

    def naive(query: list[int], said: list[int]) -> Tensor:
        biased = [logits_after(lm, [*prefix, *query, *said]) for prefix in PREFIXES]
        own = without_end(logits_after(lm, [*query, *said]), said)
        return torch.tensor(debiased(own, biased, params), dtype=torch.float64)

    made = drawn(lm, SelfDebias(params, PREFIXES, frozen(lm)))
    assert_drawn_from(made, naive)
    assert_unlike(made, drawn(lm, None))


def test_self_debias_without_decay_is_the_model(lm: GPT2LMHeadModel) -> None:
    params = DEBIASED.model_copy(update={"decay": 0.0})
    assert_same(drawn(lm, SelfDebias(params, PREFIXES, frozen(lm))), drawn(lm, None), to_the_bit=False)


def fixed(*probabilities: float) -> Callable[[Tensor], Tensor]:
    """A model that gives every row these next-token probabilities."""
    return lambda tokens: torch.tensor(probabilities).log().expand(len(tokens), -1)


def test_self_debias_by_hand() -> None:
    # p = .5 .3 .2. The largest of both attributes' is .5 .6 .4: a = 0 .3 .2. exp(-10 a) = 1, .0498, .1353, at least
    # .06: 1, .06, .1353. p' is .5, .018, .02707 over .54507.
    params = DEBIASED.model_copy(update={"decay": 10.0, "floor": 0.06})
    asked = [Prompts(torch.tensor([[1, 2]]), torch.ones(1, 2, dtype=torch.bool))] * 2
    processor = _Debiased(params, [fixed(0.5, 0.1, 0.4), fixed(0.3, 0.6, 0.1)], asked, 2)  # type: ignore[list-item]
    made = processor(torch.tensor([[1, 2]]), torch.tensor([[0.5, 0.3, 0.2]]).log()).softmax(dim=-1)
    assert made[0].tolist() == pytest.approx([0.91731, 0.03302, 0.04966], abs=1e-4)


def in_nucleus(logits: Tensor, top_p: float) -> Tensor:
    """Token by token: from the most likely one on, until they have probability top_p."""
    p = logits.softmax(dim=0).tolist()
    kept, total = torch.full_like(logits, -torch.inf), 0.0
    for v in sorted(range(len(p)), key=lambda v: -p[v]):
        if total >= top_p:
            break
        kept[v] = logits[v]
        total += p[v]
    return kept


@pytest.mark.parametrize("top_p", [0.6, 1.0])
def test_dexperts_adds_the_difference_inside_the_nucleus(top_p: float, models: list[GPT2LMHeadModel]) -> None:
    lm, expert, anti_expert = models

    def naive(query: list[int], said: list[int]) -> Tensor:
        own, up, down = (logits_after(model, [*query, *said]) for model in models)
        return in_nucleus(without_end(own, said), top_p) + 1.4 * (up - down)

    rule = DExperts(DExpertsParams(alpha=1.4, top_p=top_p), frozen(expert), frozen(anti_expert))
    made = drawn(lm, rule)
    assert_drawn_from(made, naive)
    assert_unlike(made, drawn(lm, None))


def test_dexperts_without_weight_is_the_model_or_its_nucleus(models: list[GPT2LMHeadModel]) -> None:
    lm, *others = models
    experts = [frozen(other) for other in others]
    whole = drawn(lm, DExperts(DExpertsParams(alpha=0, top_p=1), *experts))
    assert_same(whole, drawn(lm, None), to_the_bit=True)
    made = drawn(lm, DExperts(DExpertsParams(alpha=0, top_p=0.5), *experts))
    assert_drawn_from(made, lambda query, said: in_nucleus(without_end(logits_after(lm, [*query, *said]), said), 0.5))
    assert_unlike(made, whole)


def test_dexperts_with_the_model_as_expert_is_the_anti_expert_alone(models: list[GPT2LMHeadModel]) -> None:
    lm, _, anti_expert = models

    rule = DExperts(DExpertsParams(alpha=1.4, top_p=1), frozen(lm), frozen(anti_expert))

    def naive(query: list[int], said: list[int]) -> Tensor:
        own, down = (logits_after(model, [*query, *said]) for model in (lm, anti_expert))
        return 2.4 * without_end(own, said) - 1.4 * down

    assert_drawn_from(drawn(lm, rule), naive)


def test_dexperts_by_hand() -> None:
    # p = .6 .3 .1: the nucleus of .8 is the first two. Expert .2 .6 .2, anti-expert .4 .3 .3, alpha 2:
    # .6 (.2 / .4)^2 = .15 and .3 (.6 / .3)^2 = 1.2, so 1/9 and 8/9.
    params = DExpertsParams(alpha=2, top_p=0.8)
    processor = _Steered(params, fixed(0.2, 0.6, 0.2), fixed(0.4, 0.3, 0.3))  # type: ignore[arg-type]
    made = processor(torch.tensor([[1]]), torch.tensor([[0.6, 0.3, 0.1]]).log()).softmax(dim=-1)
    assert made[0].tolist() == pytest.approx([1 / 9, 8 / 9, 0.0])


def test_the_nucleus_is_the_smallest_set_that_reaches_its_share() -> None:
    logits = torch.tensor([[0.1, 0.5, 0.4], [0.98, 0.01, 0.01]]).log()
    for top_p, kept in {
        0.4: [[1], [0]],
        0.55: [[1, 2], [0]],
        0.95: [[0, 1, 2], [0]],
        1.0: [[0, 1, 2], [0, 1, 2]],
    }.items():
        assert [row.isfinite().nonzero().squeeze(1).tolist() for row in nucleus(logits, top_p)] == kept


def test_a_nucleus_of_the_end_alone_leaves_the_tokens_that_may_be_drawn(models: list[GPT2LMHeadModel]) -> None:
    with torch.no_grad():
        models[0].transformer.ln_f.bias.mul_(50.0)  # the end is all but certain wherever it may be drawn
    for rule in (
        DExperts(DExpertsParams(alpha=1, top_p=0.5), *(frozen(model) for model in models[1:])),
        GeDi(GEDI, *(frozen(model) for model in models[1:])),
    ):
        responses = drawn(models[0], rule).episodes.responses
        assert (responses[:, :2] != 0).all()


def gedi_logprobs(query: list[int], said: list[int], classes: Sequence[GPT2LMHeadModel]) -> Tensor:
    """(V,) log P(wanted | said, v), from the log-probability of each token of the response by full passes."""
    totals = []
    for lm in classes:
        before = sum(float(logits_after(lm, [*query, *said[:i]]).log_softmax(0)[v]) for i, v in enumerate(said))
        totals.append(GEDI.scale * (before + logits_after(lm, [*query, *said]).log_softmax(0)) / (len(said) + 1))
    totals[0] = totals[0] + GEDI.bias
    return torch.stack(totals).log_softmax(dim=0)[0]


def test_gedi_weighs_by_the_class_of_the_text_so_far(models: list[GPT2LMHeadModel]) -> None:
    lm, *classes = models
    params = GEDI.model_copy(update={"remove": 0.0})

    def naive(query: list[int], said: list[int]) -> Tensor:
        own = without_end(logits_after(lm, [*query, *said]), said).log_softmax(dim=0)
        return own + params.omega * gedi_logprobs(query, said, classes)

    made = drawn(lm, GeDi(params, *(frozen(model) for model in classes)))
    assert_drawn_from(made, naive)
    assert_unlike(made, drawn(lm, None))


def test_gedi_without_weight_and_removal_is_the_model(models: list[GPT2LMHeadModel]) -> None:
    params = GEDI.model_copy(update={"omega": 0.0, "remove": 0.0})
    rule = GeDi(params, *(frozen(model) for model in models[1:]))
    assert_same(drawn(models[0], rule), drawn(models[0], None), to_the_bit=False)


def test_class_probabilities_by_hand_over_two_steps() -> None:
    params = GeDiParams(omega=1, scale=2, bias=log(2), remove=0, keep_above=1)
    processor = _Classified(params, [fixed(0.5, 0.4, 0.1), fixed(0.25, 0.7, 0.05)])  # type: ignore[list-item]
    own = torch.tensor([[0.2, 0.3, 0.5]])
    # First step, t = 1: P(wanted | v) is 2 p^2 / (2 p^2 + q^2): .5 / .5625, .32 / .81, .02 / .0225.
    wanted = [8 / 9, 32 / 81, 8 / 9]
    first = processor(torch.tensor([[7]]), own.log()).softmax(dim=-1)
    total = 0.2 * wanted[0] + 0.3 * wanted[1] + 0.5 * wanted[2]
    assert first[0].tolist() == pytest.approx([p * w / total for p, w in zip([0.2, 0.3, 0.5], wanted, strict=True)])
    # Token 1 is drawn. Second step: scale 2 / t 2 is 1, so
    # 2 (.4 p) / (2 (.4 p) + .7 q): .4 / .575, .32 / .81, .08 / .115.
    wanted = [0.4 / 0.575, 0.32 / 0.81, 0.08 / 0.115]
    second = processor(torch.tensor([[7, 1]]), own.log()).softmax(dim=-1)
    total = 0.2 * wanted[0] + 0.3 * wanted[1] + 0.5 * wanted[2]
    assert second[0].tolist() == pytest.approx([p * w / total for p, w in zip([0.2, 0.3, 0.5], wanted, strict=True)])


@pytest.mark.parametrize(
    ("remove", "keep_above", "kept"),
    [
        (0.0, 1.0, [0, 1, 2, 3]),
        (0.35, 1.0, [0, 1, 2]),  # .3 is below .35, .3 + .2 is not
        (0.55, 1.0, [0, 1]),
        (0.55, 0.3, [0, 1, 2]),  # the second one's P(wanted) of .4 is above .3
        (0.9, 1.0, [0]),  # .3 + .2 + .1 = .6 is below .9, all together is not
    ],
)
def test_removal_by_hand(remove: float, keep_above: float, kept: list[int]) -> None:
    params = GeDiParams(omega=0, scale=1, bias=0, remove=remove, keep_above=keep_above)
    own, wanted = torch.tensor([[0.4, 0.1, 0.2, 0.3]]), torch.tensor([[0.9, 0.8, 0.4, 0.2]])
    made = _Classified(params, [])._weighed(own.log(), wanted.log())
    assert made[0].isfinite().nonzero().squeeze(1).tolist() == kept
    assert made[0, kept].tolist() == pytest.approx(own[0, kept].log().tolist())
