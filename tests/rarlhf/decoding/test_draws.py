"""Rules that keep one of several draws: which draw, how many are made, and the distribution of what is kept."""

from collections.abc import Callable
from math import log

import pytest
import torch
from torch import Tensor
from transformers import GPT2LMHeadModel

from rarlhf.config.baselines import BestOfNParams, RejectionParams, SoftRejectionParams
from rarlhf.config.errors import UserError
from rarlhf.data.acceptance import best_of_n_nats
from rarlhf.decoding.draws import BestOfN, Rejection, SoftRejection
from rarlhf.decoding.prompts import left_pad
from rarlhf.decoding.rules import DecodingRule
from rarlhf.decoding.sampling import Decoding, Numbers, Responses, draw, random_numbers
from rarlhf.models.episodes import Episodes
from rarlhf.models.policy import Sampling

CPU = torch.device("cpu")
SAMPLING = Sampling(temperature=0.9, min_new_tokens=0, max_new_tokens=6, end_id=0)
QUERIES = [[5, 6, 7], [8], [9, 10], [5, 5, 5], [11, 12], [13]]
PROMPTS = left_pad(QUERIES, 0, CPU)
COUNT = len(QUERIES)


def numbers(draws: int) -> Numbers:
    return random_numbers(("draws", 2), (COUNT, 6), draws)


def lengths(episodes: Episodes) -> Tensor:
    return episodes.response_mask.sum(dim=1).float()


def sums(episodes: Episodes) -> Tensor:
    return torch.where(episodes.response_mask, episodes.responses, 0).sum(dim=1).float()


def drawn(lm: GPT2LMHeadModel, rule: DecodingRule | None, count: int) -> Responses:
    return draw(Decoding(lm, SAMPLING, rule), PROMPTS, numbers(count))


def plain(lm: GPT2LMHeadModel, count: int) -> list[Responses]:
    """Each draw as plain sampling makes it."""
    made = numbers(count)
    singles = [Numbers(made.tokens[i : i + 1], made.coins[i : i + 1]) for i in range(count)]
    return [draw(Decoding(lm, SAMPLING), PROMPTS, one) for one in singles]


def assert_kept(made: Responses, alone: list[Responses], chosen: list[int]) -> None:
    """That each row is the chosen draw, and nothing is left of the others."""
    widths = [int(alone[i].episodes.response_mask[row].sum()) for row, i in enumerate(chosen)]
    assert made.episodes.responses.shape[1] == max(widths)
    assert torch.equal(made.episodes.queries, PROMPTS.tokens)
    assert torch.equal(made.episodes.query_mask, PROMPTS.mask)
    for row, (index, width) in enumerate(zip(chosen, widths, strict=True)):
        other = alone[index]
        rest = max(widths) - width
        assert made.episodes.responses[row].tolist() == [*other.episodes.responses[row, :width].tolist(), *[0] * rest]
        assert made.episodes.response_mask[row].tolist() == [True] * width + [False] * rest
        torch.testing.assert_close(made.logprobs[row, :width], other.logprobs[row, :width], atol=1e-5, rtol=0)
        own = [*other.logprobs[row, width:].tolist(), *[0.0] * rest]  # padding is not zeroed, as in plain sampling
        for value, known in zip(made.logprobs[row, width:].tolist(), own[:rest], strict=True):
            assert value == 0 or value == pytest.approx(known, abs=1e-5)


RULES: list[Callable[[Callable[[Episodes], Tensor]], DecodingRule]] = [
    lambda score: BestOfN(BestOfNParams(n=1), score),
    lambda score: Rejection(RejectionParams(n=1, threshold=1e9), score),
    lambda score: SoftRejection(SoftRejectionParams(n=1, alpha=0.5, eta=1e9, kl_coef=1.0), score),
]


@pytest.mark.parametrize("rule", RULES)
def test_one_draw_is_plain_sampling_to_the_bit(
    rule: Callable[[Callable[[Episodes], Tensor]], DecodingRule], lm: GPT2LMHeadModel
) -> None:
    def never(_: Episodes) -> Tensor:
        raise AssertionError("a single draw needs no score")

    ruled, bare = drawn(lm, rule(never), 1), drawn(lm, None, 1)
    assert all(torch.equal(one, other) for one, other in zip(ruled.episodes, bare.episodes, strict=True))
    assert torch.equal(ruled.logprobs, bare.logprobs)
    assert ruled.choice_nats.tolist() == [0.0] * COUNT
    assert ruled.draws.tolist() == [1] * COUNT


@pytest.mark.parametrize("score", [sums, lengths, lambda episodes: -lengths(episodes)])
def test_the_best_draw_is_kept_and_the_first_of_equals(
    score: Callable[[Episodes], Tensor], lm: GPT2LMHeadModel
) -> None:
    alone = plain(lm, 5)
    values = torch.stack([score(one.episodes) for one in alone])
    first = [max(range(5), key=column.__getitem__) for column in values.T.tolist()]  # Python's max takes the first
    assert len(set(first)) > 1
    made = drawn(lm, BestOfN(BestOfNParams(n=5), score), 5)
    assert_kept(made, alone, first)
    assert made.choice_nats.tolist() == pytest.approx([log(5) - 4 / 5] * COUNT)
    assert made.draws.tolist() == [5] * COUNT


def test_rejection_stops_at_the_first_draw_that_passes(lm: GPT2LMHeadModel) -> None:
    alone = plain(lm, 4)
    values = torch.stack([sums(one.episodes) for one in alone])
    threshold = float(values.flatten().sort().values[-9])
    passes = (values >= threshold).T.tolist()
    chosen, draws, nats = [], [], []
    for row, passed in enumerate(passes):
        found = passed.index(True) if any(passed) else None
        chosen.append(int(values[:, row].argmax()) if found is None else found)
        draws.append(4 if found is None else found + 1)
        nats.append(best_of_n_nats(4) if found is None else sum(1 / k for k in range(1, found + 1)))
    assert {True, False} == {any(passed) for passed in passes}
    assert len(set(draws)) > 2
    scored: list[int] = []

    def score(episodes: Episodes) -> Tensor:
        scored.append(len(episodes.responses))
        return sums(episodes)

    made = drawn(lm, Rejection(RejectionParams(n=4, threshold=threshold), score), 4)
    assert_kept(made, alone, chosen)
    assert made.draws.tolist() == draws
    assert made.choice_nats.tolist() == pytest.approx(nats)
    assert scored == [sum(count > before for count in draws) for before in range(4)]  # no more than are needed
    reached = Rejection(RejectionParams(n=4, threshold=-1e9), score)
    scored.clear()
    assert_kept(drawn(lm, reached, 4), alone, [0] * COUNT)
    assert scored == [COUNT]


def test_the_batch_changes_no_number(lm: GPT2LMHeadModel) -> None:
    rule = SoftRejection(SoftRejectionParams(n=6, alpha=0.5, eta=1000.0, kl_coef=400.0), sums)
    whole = drawn(lm, rule, 6)
    assert len(set(whole.draws.tolist())) > 2
    for row in range(COUNT):
        index = torch.tensor([row])
        part = draw(Decoding(lm, SAMPLING, rule), PROMPTS.rows(index), numbers(6).rows(index))
        width = part.episodes.responses.shape[1]
        assert torch.equal(part.episodes.responses[0], whole.episodes.responses[row, :width])
        assert torch.equal(part.draws[0], whole.draws[row])
        assert float(part.choice_nats[0]) == pytest.approx(float(whole.choice_nats[row]), abs=1e-6)


ONE_TOKEN = Sampling(temperature=1.0, min_new_tokens=0, max_new_tokens=1, end_id=0)
PARAMS = SoftRejectionParams(n=60, alpha=0.5, eta=4.0, kl_coef=1.6)


def grades(tokens: Tensor) -> Tensor:
    """A score from 0 to 6 of an answer of one token."""
    return (tokens % 7).float()


def one_token(lm: GPT2LMHeadModel, rule: DecodingRule, count: int) -> tuple[Responses, Tensor]:
    """Answers of one token to one prompt, and the probabilities (V,) that the model gives them."""
    prompts = left_pad([[5, 6, 7]] * count, 0, CPU)
    made = draw(Decoding(lm, ONE_TOKEN, rule), prompts, random_numbers(("world",), (count, 1), rule.draws))
    with torch.no_grad():
        return made, lm(torch.tensor([[5, 6, 7]])).logits[0, -1].double().softmax(dim=0)


def test_soft_rejection_draws_from_the_policy_that_it_names(lm: GPT2LMHeadModel) -> None:
    rule = SoftRejection(PARAMS, lambda episodes: grades(episodes.responses[:, 0]))
    made, p = one_token(lm, rule, 20_000)
    score = grades(torch.arange(len(p))).double()
    weights = torch.exp(-(4.0 - score).clamp(min=0) / (0.5 * 1.6))  # exp(-(eta - s)+ / (alpha beta))
    z = float(p @ weights)
    assert (1 - z) ** 60 < 1e-6  # all are accepted
    target = p * weights / z
    shares = torch.bincount(made.episodes.responses[:, 0], minlength=len(p)) / 20_000
    error = (target * (1 - target) / 20_000).sqrt()
    assert torch.all((shares - target).abs() < 5 * error + 2e-4)
    assert float((p - target).abs().sum()) > 0.3  # which is another one than the model
    kl = float(target @ (target / p).log())
    assert float(made.choice_nats.double().mean()) == pytest.approx(kl, abs=0.03)
    assert float(made.draws.double().mean()) == pytest.approx(1 / z, rel=0.03)


def test_the_kl_of_few_draws_is_not_told_too_low(lm: GPT2LMHeadModel) -> None:
    """Of two draws, of which most are refused: what is kept is close to the model, and the estimate is above that."""
    rule = SoftRejection(PARAMS.model_copy(update={"n": 2, "eta": 8.0}), lambda x: grades(x.responses[:, 0]))
    made, p = one_token(lm, rule, 20_000)
    shares = torch.bincount(grades(made.episodes.responses[:, 0]).long(), minlength=7).double() / 20_000
    before = torch.bincount(grades(torch.arange(len(p))).long(), weights=p, minlength=7)
    truth = float((shares * (shares / before).log()).sum())
    assert truth > 0.05
    assert truth <= float(made.choice_nats.double().mean())


def test_a_score_that_is_no_number_chooses_nothing(lm: GPT2LMHeadModel) -> None:
    alone = plain(lm, 3)
    rules = (
        BestOfN(BestOfNParams(n=3), lambda x: torch.full((len(x.responses),), torch.nan)),
        SoftRejection(PARAMS.model_copy(update={"n": 3}), lambda x: torch.full((len(x.responses),), -torch.inf)),
    )
    for rule in rules:
        made = drawn(lm, rule, 3)
        assert_kept(made, alone, [0] * COUNT)
        assert made.draws.tolist() == [3] * COUNT


def test_numbers_that_are_still_to_be_planned_are_refused() -> None:
    with pytest.raises(UserError, match="threshold = 'plan': only stage plan knows this number; give one"):
        Rejection(RejectionParams(n=2, threshold="plan"), sums)
    for key in ("eta", "kl_coef"):
        with pytest.raises(UserError, match=f"{key} = 'plan': only stage plan knows this number"):
            SoftRejection(PARAMS.model_copy(update={key: "plan"}), sums)
