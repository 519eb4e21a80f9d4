"""Continuations of test prompts: form, sampling, KL, text."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GPT2LMHeadModel, PreTrainedTokenizerBase

import rarlhf.decoding.scored
from rarlhf.config.params import Params
from rarlhf.data.prompts import Query
from rarlhf.data.queries import TextQuery, continuation
from rarlhf.decoding.prompts import Prompts
from rarlhf.decoding.sampling import Decoding, Numbers, Responses, draw
from rarlhf.decoding.scored import ScoredContinuations
from rarlhf.models.episodes import Episodes
from rarlhf.models.loading import save_model
from rarlhf.models.policy import sampling_of
from rarlhf.rl.ppo import PPOTrainer
from rarlhf.system.machine import Machine

Make = Callable[..., ScoredContinuations]
PROMPTS = ["we liked", "we", "we regret the old", "we saw the music ."]


def length(texts: Sequence[str]) -> Tensor:
    return torch.tensor([float(len(text)) for text in texts])


def query(index: int, text: str, tokenizer: PreTrainedTokenizerBase) -> Query:
    ids = tokenizer(text)["input_ids"]
    return Query(prompt_id=10 + index, prompt=text, prompt_score=0.5, label=index % 2, input_ids=ids)


@pytest.fixture
def queries(tokenizer: PreTrainedTokenizerBase) -> list[Query]:
    return [query(index, text, tokenizer) for index, text in enumerate(PROMPTS)]


@pytest.fixture
def make(lm_folder: Path, params: Params, machine: Machine) -> Make:
    """A generator of 3 samples of 6 tokens."""

    def generator(batch_size: int = 5, score: Callable[[Sequence[str]], Tensor] = length) -> ScoredContinuations:
        generate = params.generate.model_copy(update={"samples": 3, "batch_size": batch_size})
        ppo = params.ppo.model_copy(update={"max_new_tokens": 6})
        return ScoredContinuations(
            lm_folder, score, params.model_copy(update={"generate": generate, "ppo": ppo}), machine
        )

    return generator


def drawn_by(
    made: ScoredContinuations, folder: Path, queries: list[Query], seed: int, parts: Path | None = None
) -> list[dict[str, Any]]:
    return made("a bar", made.open(folder), queries, seed, parts)


@pytest.fixture
def other_folder(lm: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> Path:
    """A model near the SFT model, and not it."""
    other = deepcopy(lm)
    with torch.no_grad():
        other.transformer.h[0].attn.c_proj.weight.mul_(1.5)
    save_model(other, tokenizer, tmp_path / "other")
    return tmp_path / "other"


def test_rows_have_all_samples_of_a_prompt_together(make: Make, lm_folder: Path, queries: list[Query]) -> None:
    rows = drawn_by(make(), lm_folder, queries, 1)
    assert [(row["prompt_id"], row["sample"]) for row in rows] == [(10 + i, k) for i in range(4) for k in range(3)]
    for row in rows:
        given = queries[row["prompt_id"] - 10]
        assert [row[name] for name in ("prompt", "prompt_score", "label")] == [
            given["prompt"], given["prompt_score"], given["label"],
        ]  # fmt: skip
        assert row["score"] == len(row["prompt"] + row["continuation"])
        assert 1 <= row["tokens"] <= 6
    assert len({row["continuation"] for row in rows}) > 6  # samples differ


def test_the_batch_size_changes_no_row(make: Make, lm_folder: Path, other_folder: Path, queries: list[Query]) -> None:
    one, other = (drawn_by(make(size), other_folder, queries, 1) for size in (1, 12))
    for a, b in zip(one, other, strict=True):
        assert a.pop("kl_sft") == pytest.approx(b.pop("kl_sft"), abs=1e-5)  # other sums of the same products
        assert a == b


def test_the_sft_model_is_at_no_distance_from_itself(
    make: Make, lm_folder: Path, other_folder: Path, queries: list[Query]
) -> None:
    generator = make()
    assert {row["kl_sft"] for row in drawn_by(generator, lm_folder, queries, 1)} == {0.0}
    distances = [row["kl_sft"] for row in drawn_by(generator, other_folder, queries, 1)]
    assert sum(distances) > 0.01
    assert len(set(distances)) > 6


def test_kl_is_the_summed_log_ratio_over_the_response(
    make: Make, lm: GPT2LMHeadModel, other_folder: Path, queries: list[Query], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Episodes] = []

    def keep(*arguments: Any) -> Responses:
        responses = draw(*arguments)
        drawn.append(responses.episodes)
        return responses

    monkeypatch.setattr(rarlhf.decoding.scored, "draw", keep)
    rows = drawn_by(make(batch_size=12), other_folder, queries, 1)
    other = GPT2LMHeadModel.from_pretrained(other_folder).eval()
    assert len({row["tokens"] for row in rows}) > 1  # padding is at stake
    by_length = sorted(range(12), key=lambda i: len(queries[i // 3]["input_ids"]))  # as they are drawn
    for row, response, mask in zip((rows[i] for i in by_length), *drawn[0][2:], strict=True):
        prompt = queries[row["prompt_id"] - 10]["input_ids"]
        ids = [*prompt, *response[mask].tolist()]
        with torch.no_grad():
            ratio, reference = (m(torch.tensor([ids])).logits[0].log_softmax(dim=-1) for m in (other, lm))
        steps = range(len(prompt), len(ids))  # the token at position t is predicted at t - 1
        expected = sum(float(ratio[t - 1, ids[t]] - reference[t - 1, ids[t]]) for t in steps)
        assert row["kl_sft"] == pytest.approx(expected, abs=1e-4)
        assert row["tokens"] == len(steps)


def test_methods_share_their_draws_and_seeds_do_not(make: Make, lm_folder: Path, queries: list[Query]) -> None:
    generator = make()
    first = drawn_by(generator, lm_folder, queries, 1)
    assert drawn_by(generator, lm_folder, queries, 1) == first
    assert [row["continuation"] for row in drawn_by(generator, lm_folder, queries, 2)] != [
        row["continuation"] for row in first
    ]


def test_the_draws_have_a_seed_of_their_own(make: Make, lm_folder: Path, queries: list[Query]) -> None:
    generator = make()
    first = drawn_by(generator, lm_folder, queries, 1)
    generate = generator.params.generate.model_copy(update={"seed": generator.params.generate.seed + 1})
    generator.params = generator.params.model_copy(update={"generate": generate})
    other = drawn_by(generator, lm_folder, queries, 1)
    assert [row["continuation"] for row in other] != [row["continuation"] for row in first]


def test_compiled_passes_are_those_of_the_model_at_hand(
    make: Make, lm_folder: Path, other_folder: Path, queries: list[Query], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    eager, compiled = make(), make()
    compiled.machine = replace(compiled.machine, compiled=True)
    for folder in (lm_folder, other_folder):
        texts = [[row["continuation"] for row in drawn_by(one, folder, queries, 1)] for one in (eager, compiled)]
        assert texts[0] == texts[1]


def test_training_and_evaluation_draw_alike(params: Params) -> None:
    ppo = params.ppo.model_copy(update={"temperature": 0.7, "min_new_tokens": 2, "max_new_tokens": 9})
    assert sampling_of(params.model_copy(update={"ppo": ppo}), end_id=4) == (0.7, 2, 9, 4)


def test_a_continuation_is_what_the_response_adds(tokenizer: PreTrainedTokenizerBase) -> None:
    text = "we saw the film ."
    ids = tokenizer(text)["input_ids"]
    for cut in range(1, len(ids)):
        prompt = tokenizer.decode(ids[:cut])
        given = TextQuery(prompt, ids[:cut])
        assert prompt + continuation(given, [*ids[cut:], tokenizer.eos_token_id], tokenizer, False) == text


def test_a_character_split_between_prompt_and_response_comes_out_whole(tokenizer: PreTrainedTokenizerBase) -> None:
    ids = tokenizer("café !")["input_ids"]
    cut = 4  # c a f, and the first of the two bytes of é
    assert tokenizer.decode(ids[:cut]) == "caf\N{REPLACEMENT CHARACTER}"
    given = TextQuery("caf", ids[:cut])
    assert continuation(given, ids[cut:], tokenizer, False) == "é !"
    assert continuation(given, tokenizer("x")["input_ids"], tokenizer, False) == "\N{REPLACEMENT CHARACTER}x"


def test_training_and_evaluation_score_one_text(
    make: Make,
    make_trainer: Callable[..., PPOTrainer],
    lm_folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of a prompt that is cut inside a character, which the response goes on with."""
    ids, end = tokenizer("café !")["input_ids"], tokenizer.eos_token_id
    drawn: list[Episodes] = []
    seen: list[str] = []

    def answers(_: Decoding, prompts: Prompts, numbers: Numbers) -> Responses:
        response = torch.tensor([[*ids[4:], end]]).expand(len(prompts.tokens), -1)
        drawn.append(Episodes(*prompts, response, torch.ones_like(response, dtype=torch.bool)))
        return Responses(drawn[-1], torch.zeros(response.shape), torch.zeros(3), torch.ones(3, dtype=torch.int64))

    def score(texts: Sequence[str]) -> Tensor:
        seen.extend(texts)
        return length(texts)

    monkeypatch.setattr(rarlhf.decoding.scored, "draw", answers)
    cut = Query(prompt_id=1, prompt="caf", prompt_score=0.0, label=None, input_ids=ids[:4])
    rows = drawn_by(make(score=score), lm_folder, [cut], 1)
    assert seen == ["café !"] * 3 == make_trainer().texts(drawn[0])
    assert [row["prompt"] + row["continuation"] for row in rows] == seen
    older = drawn_by(make(score=score), lm_folder, [cut | {"prompt": "caf\N{REPLACEMENT CHARACTER}"}], 1)
    assert [row["score"] for row in older] == [row["score"] for row in rows]  # whatever the prompt is shown as


def test_a_prompt_that_decodes_otherwise_leaves_the_response_alone(tokenizer: PreTrainedTokenizerBase) -> None:
    given = TextQuery("other text", [40])
    assert continuation(given, tokenizer(" film")["input_ids"], tokenizer, False) == " film"


def test_a_call_that_was_cut_short_goes_on(
    make: Make, lm_folder: Path, queries: list[Query], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = drawn_by(make(), lm_folder, queries, 1)
    parts = tmp_path / "1.jsonl"
    assert drawn_by(make(), lm_folder, queries, 1, parts) == whole
    lines = parts.read_bytes().splitlines(keepends=True)
    assert len(lines) == 3  # 12 continuations in batches of 5
    parts.write_bytes(b"".join(lines[:2])[:-7])  # killed in the middle of the second line
    batches: list[int] = []
    batch = ScoredContinuations._batch

    def counted(
        self: ScoredContinuations, policy: object, rule: object, jobs: Sequence[object], numbers: Numbers
    ) -> object:
        batches.append(len(jobs))
        return batch(self, policy, rule, jobs, numbers)  # type: ignore[arg-type]

    monkeypatch.setattr(ScoredContinuations, "_batch", counted)
    assert drawn_by(make(), lm_folder, queries, 1, parts) == whole
    assert batches == [5, 2]
    assert drawn_by(make(), lm_folder, queries, 1, parts) == whole
    assert batches == [5, 2]  # nothing more
