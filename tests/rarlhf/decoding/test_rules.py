"""Decoding rules: two small ones that show what the interface carries, and the KL of what they draw."""

from collections.abc import Sequence
from copy import deepcopy
from math import log
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import GPT2LMHeadModel, LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase

from rarlhf.config.params import Params
from rarlhf.data.acceptance import best_of_n_nats
from rarlhf.data.prompts import Query
from rarlhf.decoding.prompts import Prompts, left_pad
from rarlhf.decoding.rules import DecodingRule, Reader
from rarlhf.decoding.sampling import Decoding, Numbers, draw, invert, random_numbers, sample_responses
from rarlhf.decoding.scored import ScoredContinuations
from rarlhf.decoding.writing import Choices, OpenModel, write
from rarlhf.models.episodes import Episodes
from rarlhf.models.loading import save_model
from rarlhf.models.policy import Sampling
from rarlhf.models.reference import frozen
from rarlhf.system.machine import Machine

CPU = torch.device("cpu")
SAMPLING = Sampling(temperature=0.9, min_new_tokens=2, max_new_tokens=6, end_id=0)
QUERIES = [[5, 6, 7], [8], [9, 10], [5, 5, 5]]
PROMPTS = left_pad(QUERIES, 0, CPU)
STEERED = [1.0, 0.8, -0.8]  # of the logits of model, expert and anti-expert, as in DExperts (Liu et al. 2021)


class Experts(DecodingRule):
    """The logits of the model, plus those of one further model and minus those of another."""

    def __init__(self, expert: PreTrainedModel, anti_expert: PreTrainedModel) -> None:
        self.models = [frozen(expert), frozen(anti_expert)]

    def processors(self, prompts: Prompts, new_tokens: int) -> LogitsProcessorList:
        readers = [Reader(model, prompts, new_tokens) for model in self.models]

        def steered(tokens: Tensor, logits: Tensor) -> Tensor:
            expert, anti_expert = (reader(tokens) for reader in readers)
            return STEERED[0] * logits + STEERED[1] * expert + STEERED[2] * anti_expert

        return LogitsProcessorList([steered])


class BestOf(DecodingRule):
    """The draw with the largest sum of token ids."""

    reshapes = False

    def __init__(self, draws: int) -> None:
        self.draws = draws

    def value(self, episodes: Episodes) -> Tensor:
        return score(episodes)


def score(episodes: Episodes) -> Tensor:
    return torch.where(episodes.response_mask, episodes.responses, 0).sum(dim=1)


def varied(lm: GPT2LMHeadModel, factor: float) -> GPT2LMHeadModel:
    other = deepcopy(lm)
    with torch.no_grad():
        other.transformer.h[0].attn.c_proj.weight.mul_(factor)
        other.transformer.h[1].mlp.c_proj.weight.mul_(factor)
    return other


@pytest.fixture
def models(lm: GPT2LMHeadModel) -> list[GPT2LMHeadModel]:
    return [lm, varied(lm, 1.6), varied(lm, 0.5)]


@torch.no_grad()
def slowly(models: Sequence[PreTrainedModel], query: list[int], uniforms: Tensor) -> tuple[list[int], list[float]]:
    """One response by full passes over the bare text, without cache, padding or batch; and its log-probabilities."""
    text, logprobs = list(query), []
    for t in range(SAMPLING.max_new_tokens):
        rows = [model(torch.tensor([text])).logits[0, -1] for model in models]
        logits = sum(weight * row for weight, row in zip(STEERED, rows, strict=False)) / SAMPLING.temperature
        if t < SAMPLING.min_new_tokens:
            logits[SAMPLING.end_id] = -torch.inf
        probabilities = logits.softmax(dim=0)
        token = int(invert(probabilities.unsqueeze(0), uniforms[t : t + 1]))
        text.append(token)
        logprobs.append(float(probabilities[token].log()))
        if token == SAMPLING.end_id:
            break
    return text[len(query) :], logprobs


def numbers(draws: int = 1) -> Numbers:
    return random_numbers(("rules", 6), (4, 6), draws)


def test_further_models_with_caches_draw_what_full_passes_draw(models: list[GPT2LMHeadModel]) -> None:
    lm, *further = models
    episodes, logprobs, nats, draws = draw(Decoding(lm, SAMPLING, Experts(*further)), PROMPTS, numbers())
    plain = draw(Decoding(lm, SAMPLING), PROMPTS, numbers()).episodes
    assert not torch.equal(plain.responses, episodes.responses)  # the further models matter
    assert nats.tolist() == [0.0] * 4
    assert draws.tolist() == [1] * 4
    lengths = episodes.response_mask.sum(dim=1).tolist()
    assert len(set(lengths)) > 1
    for row, query in enumerate(QUERIES):
        tokens, expected = slowly(models, query, numbers().tokens[0, row])
        assert episodes.responses[row, : lengths[row]].tolist() == tokens
        assert logprobs[row, : lengths[row]].tolist() == pytest.approx(expected, abs=1e-5)


def test_a_further_model_reads_each_token_once(models: list[GPT2LMHeadModel]) -> None:
    read: list[int] = []
    models[1].base_model.register_forward_pre_hook(
        lambda module, args, kwargs: read.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    draw(Decoding(models[0], SAMPLING, Experts(*models[1:])), PROMPTS, numbers())
    assert read == [3] + [1] * (len(read) - 1)


def test_a_rule_that_changes_nothing_draws_the_same(lm: GPT2LMHeadModel) -> None:
    plain, ruled = (draw(Decoding(lm, SAMPLING, rule), PROMPTS, numbers()) for rule in (None, DecodingRule()))
    assert all(torch.equal(one, other) for one, other in zip(plain.episodes, ruled.episodes, strict=True))
    assert torch.equal(plain.logprobs, ruled.logprobs)
    with pytest.raises(NotImplementedError, match="DecodingRule draws 1 responses and has no `value`"):
        DecodingRule().value(ruled.episodes)


def test_the_best_of_several_draws_is_kept(lm: GPT2LMHeadModel) -> None:
    three = numbers(3)
    assert torch.equal(three.tokens[:1], numbers().tokens)  # the first draw is that of plain sampling
    assert torch.equal(three.coins[:1], numbers().coins)
    assert not torch.equal(three.coins[0], three.tokens[0, :, 0])
    alone = [sample_responses(Decoding(lm, SAMPLING), PROMPTS, one) for one in three.tokens]
    scores = torch.stack([score(episodes) for episodes in alone])
    assert len(set(scores.argmax(dim=0).tolist())) > 1
    episodes, logprobs, nats, draws = draw(Decoding(lm, SAMPLING, BestOf(3)), PROMPTS, three)
    assert torch.equal(score(episodes), scores.max(dim=0).values)
    assert torch.equal(episodes.queries, PROMPTS.tokens)
    assert nats.tolist() == pytest.approx([log(3) - 2 / 3] * 4)
    assert draws.tolist() == [3] * 4
    for row, index in enumerate(scores.argmax(dim=0).tolist()):
        mask = episodes.response_mask[row]
        kept = alone[index].responses[row][alone[index].response_mask[row]].tolist()
        assert episodes.responses[row][mask].tolist() == kept
        expected = slowly([lm], QUERIES[row], three.tokens[index, row])
        assert (kept, logprobs[row][mask].tolist()) == (expected[0], pytest.approx(expected[1], abs=1e-5))


def test_what_a_choice_adds_to_the_kl_is_bounded() -> None:
    """Exact, for three responses with p = .5, .3, .2, of which n are drawn."""
    p = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    for n in (1, 2, 3, 10):
        best = p.cumsum(dim=0).pow(n).diff(prepend=torch.zeros(1, dtype=torch.float64))  # the last is the best
        assert float((best * (best / p).log()).sum()) <= best_of_n_nats(n) + 1e-12
        missed = (1 - p[2]) ** n  # the first of the best kind if there is one, else the first draw
        first = torch.cat([missed * p[:2] / p[:2].sum(), 1 - missed.unsqueeze(0)])
        assert float((first * (first / p).log()).sum()) <= best_of_n_nats(n) + 1e-12
    assert best_of_n_nats(1) == 0


def queries(tokenizer: PreTrainedTokenizerBase) -> list[Query]:
    texts = ["we liked", "we saw the music ."]
    return [
        Query(prompt_id=i, prompt=text, prompt_score=0.0, label=None, input_ids=tokenizer(text)["input_ids"])
        for i, text in enumerate(texts)
    ]


def test_the_kl_of_stage_generate_is_that_of_what_was_drawn_from(
    models: list[GPT2LMHeadModel], tokenizer: PreTrainedTokenizerBase, params: Params, machine: Machine, tmp_path: Path
) -> None:
    lm, *further = models
    save_model(lm, tokenizer, tmp_path)
    ppo = params.ppo.model_copy(update={"temperature": 0.9, "min_new_tokens": 2, "max_new_tokens": 6})
    generate = params.generate.model_copy(update={"samples": 2, "batch_size": 3})
    changed = params.model_copy(update={"ppo": ppo, "generate": generate})

    def rows(rule: DecodingRule | None) -> list[dict[str, object]]:
        made = ScoredContinuations(tmp_path, lambda texts: torch.zeros(len(texts)), changed, machine)
        return made("sft", made.open(tmp_path), queries(tokenizer), 1, rule=rule)

    drawn = random_numbers(("generate", generate.seed, 1), (4, 6)).tokens[0]
    plain, steered, best = rows(None), rows(Experts(*further)), rows(BestOf(2))
    assert [row["kl_sft"] for row in plain] == [0.0] * 4
    assert [[row.get("draws") for row in made] for made in (plain, steered, best)] == [[None] * 4, [1] * 4, [2] * 4]
    assert [row["kl_sft"] for row in best] == pytest.approx([log(2) - 1 / 2] * 4)  # the SFT model's own draws
    for row, uniforms in zip(steered, drawn, strict=True):
        prompt = tokenizer(str(row["prompt"]))["input_ids"]
        tokens, logprobs = slowly(models, prompt, uniforms)
        assert row["tokens"] == len(tokens)
        with torch.no_grad():
            logits = lm(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1] / 0.9
        logits[:2, 0] = -torch.inf
        reference = logits.log_softmax(dim=-1).gather(1, torch.tensor(tokens).unsqueeze(1)).squeeze(1)
        assert row["kl_sft"] == pytest.approx(sum(logprobs) - float(reference.sum()), abs=1e-4)
    assert [row["kl_sft"] for row in steered] != [0.0] * 4


def test_the_command_line_writes_by_the_same_rules(
    models: list[GPT2LMHeadModel], tokenizer: PreTrainedTokenizerBase
) -> None:
    choices, model = Choices(2, 6, 1.0, seed=1, batch_size=3), OpenModel(models[0], tokenizer)
    rules = (None, DecodingRule(), Experts(*models[1:]), BestOf(3))
    plain, same, steered, best = (list(write(model, ["we", "we liked"], choices, rule)) for rule in rules)
    assert plain == same != steered
    assert plain != best
    alone = list(write(model, ["we"], choices, BestOf(3)))
    assert alone == best[:2]  # the random numbers belong to prompt and sample
