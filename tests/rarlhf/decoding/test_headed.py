"""NADO and RECT: exact distributions in a world of a few answers, numbers by hand, and caches against whole passes."""

from itertools import product

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerBase

from rarlhf.config.baselines import NADOParams, RECTParams
from rarlhf.config.errors import UserError
from rarlhf.config.params import Params
from rarlhf.decoding.choice import Parts, build_rule
from rarlhf.decoding.headed import NADO, RECT, Headed, HeadReader
from rarlhf.decoding.prompts import left_pad
from rarlhf.decoding.rules import DecodingRule
from rarlhf.decoding.sampling import Decoding, draw, random_numbers
from rarlhf.models.head import head_inputs, head_logits, new_head
from rarlhf.models.policy import Sampling, positions
from rarlhf.models.reference import frozen

CPU = torch.device("cpu")
PROMPTS = left_pad([[5, 6, 7], [8], [9, 10], [5, 5, 5]], 0, CPU)
NUMBERS = random_numbers(("headed",), (4, 6))


def head_of(lm: GPT2LMHeadModel, params: Params, layers: int = 2) -> GPT2LMHeadModel:
    head = new_head(lm, params.head.model_copy(update={"layers": layers, "heads": 2}), 12, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weights in head.parameters():
            weights.add_(0.3 * torch.randn(weights.shape, generator=generator))
    return head.eval().requires_grad_(False)


@pytest.fixture
def headed(lm: GPT2LMHeadModel, params: Params) -> Headed:
    return Headed(frozen(lm), head_of(lm, params), 0.9)


@pytest.mark.parametrize("layers", [0, 1, 2])
def test_the_caches_give_what_whole_passes_give(lm: GPT2LMHeadModel, params: Params, layers: int) -> None:
    head, read = head_of(lm, params, layers), []
    tokens = torch.randint(1, 20, (4, 8), generator=torch.Generator().manual_seed(1))
    tokens[:, :3] = PROMPTS.tokens
    mask = torch.cat([PROMPTS.mask, torch.ones(4, 5, dtype=torch.bool)], dim=1)
    reader = HeadReader(Headed(frozen(lm), head, 1.0), PROMPTS, 6)
    for module, key in ((lm.base_model, "input_ids"), (head.base_model, "inputs_embeds")):
        module.register_forward_pre_hook(
            lambda module, args, kwargs, key=key: read.append((key, kwargs[key].shape[1])), with_kwargs=True
        )
    found = torch.stack([reader(tokens[:, :end]) for end in (3, 4, 5, 8)], dim=1)
    assert read == [(key, n) for n in (3, 1, 1, 3) for key in ("input_ids", "inputs_embeds")]  # each token once
    options = {"attention_mask": mask.long(), "position_ids": positions(mask)}
    with torch.no_grad():
        states = lm.base_model(input_ids=tokens, **options).last_hidden_state
        whole = head_logits(head, head_inputs(lm, states, tokens), **options)
    assert torch.allclose(found, whole[:, [2, 3, 4, 7]], atol=1e-5)
    assert whole.std() > 0.1


def test_factor_0_is_the_model_to_the_bit_and_other_factors_are_not(lm: GPT2LMHeadModel, headed: Headed) -> None:
    sampling = Sampling(0.9, 2, 6, 0)
    made = [
        draw(Decoding(lm, sampling, rule), PROMPTS, NUMBERS)
        for rule in (None, *(NADO(NADOParams(factor=factor), headed) for factor in (0.0, 4.0, 4.0)))
    ]
    plain, same, steered, again = ((one.episodes.responses, one.logprobs) for one in made)
    assert all(torch.equal(*pair) for pair in zip(plain, same, strict=True))
    assert all(torch.equal(*pair) for pair in zip(steered, again, strict=True))
    assert steered[0].shape != plain[0].shape or not torch.equal(steered[0], plain[0])


class Small:
    """One prompt, three tokens and the end of text: all answers of at most two tokens."""

    def __init__(self, temperature: float) -> None:
        torch.manual_seed(3)
        config = GPT2Config(
            vocab_size=4, n_positions=8, n_embd=8, n_layer=1, n_head=2, initializer_range=0.5, bos_token_id=0
        )
        self.lm, self.temperature = GPT2LMHeadModel(config).eval(), temperature
        self.answers = [(0,), *((i, j) for i, j in product((1, 2, 3), range(4)))]
        self.p = torch.tensor([self.chance(answer) for answer in self.answers], dtype=torch.float64)
        generator = torch.Generator().manual_seed(7)
        self.scores = torch.randn(len(self.answers), generator=generator, dtype=torch.float64)

    @torch.no_grad()
    def logits(self, prefix: tuple[int, ...]) -> Tensor:
        return self.lm(torch.tensor([[1, 2, *prefix]])).logits[:, -1]

    def chance(self, answer: tuple[int, ...], rule: DecodingRule | None = None) -> float:
        """Probability of an answer as it is sampled, by a rule or not."""
        prompts, chance = left_pad([[1, 2]], 0, CPU), 1.0
        processors = rule.processors(prompts, 2) if rule else None
        for t, token in enumerate(answer):
            logits = self.logits(answer[:t])
            if processors:
                logits = processors(torch.tensor([[1, 2, *answer[:t]]]), logits)
            chance *= float((logits / self.temperature).double().softmax(dim=-1)[0, token])
        return chance

    def worth(self, labels: Tensor, prefix: tuple[int, ...]) -> float:
        """E[label | the answer begins so]."""
        same = torch.tensor([answer[: len(prefix)] == prefix for answer in self.answers])
        total = (self.p * same).sum()
        return float((self.p * same * labels).sum() / total) if total else 0.5


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_with_the_exact_expectation_answers_have_the_distribution_of_the_plan(
    temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    small, eta, alpha, beta = Small(temperature), 0.8, 0.4, 1.5
    assert small.p.sum() == pytest.approx(1.0)
    labels = torch.exp(-(eta - small.scores).clamp(min=0) / (alpha * beta))  # of CVaR_alpha at KL price beta

    def exact(reader: HeadReader, tokens: Tensor) -> Tensor:
        prefix = tuple(tokens[0, 2:].tolist())
        values = torch.tensor([[small.worth(labels, (*prefix, v)) for v in range(4)]], dtype=torch.float64)
        return values.clamp(1e-12, 1 - 1e-12).logit()

    monkeypatch.setattr(HeadReader, "__init__", lambda *args: None)
    monkeypatch.setattr(HeadReader, "__call__", exact)
    rule = NADO(NADOParams(factor=1.0), Headed(frozen(small.lm), small.lm, temperature))
    q = torch.tensor([small.chance(answer, rule) for answer in small.answers], dtype=torch.float64)
    planned = small.p * labels / (small.p * labels).sum()
    assert q.tolist() == pytest.approx(planned.tolist(), rel=1e-4)
    assert (q - small.p).abs().max() > 0.05


@pytest.mark.parametrize(
    ("temperature", "eps", "caps", "expected"),
    [
        (1.0, 0.0, [1.0, 1.0, 1.0], [0.5, 0.3, 0.2]),
        # once: .2 .3 .2, of which .5 is lifted to .2 / .7; again: at most .2 of .7, so .14 .3 .2
        (1.0, 0.0, [0.2, 1.0, 1.0], [0.14 / 0.64, 0.3 / 0.64, 0.2 / 0.64]),
        (1.0, 0.1, [0.3, 1.0, 1.0], [0.14 / 0.64, 0.3 / 0.64, 0.2 / 0.64]),  # 1 - .1 caps no .3
        (2.0, 0.0, [0.2, 1.0, 1.0], [0.14 / 0.64, 0.3 / 0.64, 0.2 / 0.64]),  # of the distribution that is sampled
        # a cap below 1e-7 is 1e-7; then .3 and .2 are .6 and .4 of what is left, at most .5: .25 and .2
        (1.0, 0.5, [0.3, 1.0, 1.0], [0.0, 5 / 9, 4 / 9]),
    ],
)
def test_rect_caps_twice_by_hand(
    temperature: float, eps: float, caps: list[float], expected: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HeadReader, "__init__", lambda *args: None)
    monkeypatch.setattr(HeadReader, "__call__", lambda *args: torch.tensor([caps], dtype=torch.float64).logit())
    rule = RECT(RECTParams(eps=eps), Headed(None, None, temperature))  # type: ignore[arg-type]
    logits = temperature * torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64).log() + 3.0
    made = rule.processors(PROMPTS, 2)(torch.tensor([[1]]), logits)
    assert (made / temperature).softmax(dim=-1)[0].tolist() == pytest.approx(expected, abs=1e-6)
    if min(caps) == 1:
        assert torch.equal(made, logits)


def test_a_rule_without_its_head_or_with_a_foreign_one_is_refused(
    lm: GPT2LMHeadModel, headed: Headed, tokenizer: PreTrainedTokenizerBase
) -> None:
    parts = Parts(tokenizer, frozen(lm))
    with pytest.raises(UserError, match="this rule reads a head, so it needs one of methods.heads and the SFT model"):
        build_rule(NADOParams(factor=1.0), parts)
    assert isinstance(build_rule(NADOParams(factor=1.0), parts._replace(headed=headed)), NADO)
    assert isinstance(build_rule(RECTParams(eps=0.0), parts._replace(headed=headed)), RECT)
    other = Parts(tokenizer, frozen(Small(1.0).lm), headed=headed)
    with pytest.raises(UserError, match="the model has logits for 4 tokens, and the head for 280: name another model"):
        build_rule(RECTParams(eps=0.0), other)
