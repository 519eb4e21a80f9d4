"""Scored answers: form, random numbers, log-ratios, files."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import GPT2LMHeadModel, PreTrainedTokenizerBase

from rarlhf.config.errors import UserError
from rarlhf.config.params import Params, SampledParams
from rarlhf.data.prompts import Query
from rarlhf.decoding.samples import Model, Sampler, chosen_prompts, read_samples, write_samples
from rarlhf.system.machine import Machine

PROMPTS = ["we liked", "we", "we regret the old", "we saw the music ."]
Make = Callable[..., Sampler]


def length(texts: Sequence[str]) -> Tensor:
    return torch.tensor([float(len(text)) for text in texts])


@pytest.fixture
def queries(tokenizer: PreTrainedTokenizerBase) -> list[Query]:
    return [
        Query(prompt_id=index, prompt=text, prompt_score=0.5, label=0, input_ids=tokenizer(text)["input_ids"])
        for index, text in enumerate(PROMPTS)
    ]


@pytest.fixture
def make(params: Params, machine: Machine) -> Make:
    """A sampler of answers of at most 6 tokens."""

    def sampler(batch_size: int = 5) -> Sampler:
        plan = params.plan.model_copy(update={"batch_size": batch_size})
        ppo = params.ppo.model_copy(update={"max_new_tokens": 6})
        return Sampler(length, params.model_copy(update={"plan": plan, "ppo": ppo}), machine)

    return sampler


@pytest.fixture
def model(lm: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerBase) -> Model:
    return Model(lambda: nullcontext(lm), tokenizer)


def test_answers_of_a_prompt_stand_together(
    make: Make, model: Model, queries: list[Query], tokenizer: PreTrainedTokenizerBase
) -> None:
    samples = make()("x", model, queries, 9, 17, "train")
    assert samples.responses.shape[:2] == samples.lengths.shape == samples.scores.shape == (4, 9)
    assert (samples.responses.dtype, samples.lengths.dtype, samples.scores.dtype) == (
        torch.int32, torch.int32, torch.float32,
    )  # fmt: skip
    assert samples.prompts == queries
    assert samples.log_ratios is None
    assert len(set(samples.lengths.flatten().tolist())) > 1  # padding is at stake
    for row, query in enumerate(queries):
        for answer, count, score in zip(
            samples.responses[row].tolist(), samples.lengths[row].tolist(), samples.scores[row].tolist(), strict=True
        ):
            text = tokenizer.decode(query["input_ids"] + answer[:count], skip_special_tokens=True)
            assert score == len(text)
            assert set(answer[count:]) <= {tokenizer.eos_token_id}
            assert tokenizer.eos_token_id not in answer[: count - 1]


def test_the_batch_size_changes_nothing_and_the_streams_names_do(
    make: Make, model: Model, queries: list[Query]
) -> None:
    one, other = (make(size)("x", model, queries, 3, 17, "train") for size in (1, 12))
    assert one.responses.equal(other.responses)
    assert one.scores.equal(other.scores)
    for names in ((18, "train"), (17, "test")):
        assert not make()("x", model, queries, 3, *names).lengths.equal(one.lengths)


def test_log_ratios_are_summed_over_the_real_tokens(
    make: Make, model: Model, lm: GPT2LMHeadModel, queries: list[Query], tokenizer: PreTrainedTokenizerBase
) -> None:
    near = deepcopy(lm)
    with torch.no_grad():
        near.transformer.h[0].attn.c_proj.weight.mul_(1.5)
    other = Model(lambda: nullcontext(near), tokenizer, reference=model.policy)
    samples = make()("x", other, queries, 3, 17, "train")
    assert samples.log_ratios is not None
    for row, query in enumerate(queries):
        for index in range(3):
            ids = query["input_ids"] + samples.responses[row, index, : samples.lengths[row, index]].tolist()
            with torch.no_grad():
                ratio, ref = (m(torch.tensor([ids])).logits[0].log_softmax(dim=-1) for m in (near, lm))
            expected = sum(
                float(ratio[t - 1, ids[t]] - ref[t - 1, ids[t]]) for t in range(len(query["input_ids"]), len(ids))
            )
            assert samples.log_ratios[row, index] == pytest.approx(expected, abs=1e-4)
    assert samples.log_ratios.abs().max() > 0.01
    same = make()("x", Model(model.policy, tokenizer, reference=model.policy), queries, 3, 17, "train")
    assert same.log_ratios is not None
    assert same.log_ratios.abs().max() == 0


@pytest.mark.parametrize("measured", [False, True])
def test_what_is_written_is_read(
    measured: bool, make: Make, model: Model, queries: list[Query], tmp_path: Path
) -> None:
    reference = model.policy if measured else None
    samples = make()("x", Model(model.policy, model.tokenizer, reference), queries, 2, 1)
    write_samples(samples, tmp_path)
    read = read_samples(tmp_path)
    for before, after in zip(samples, read, strict=True):
        assert before.equal(after) if isinstance(before, Tensor) else before == after
    assert (read.log_ratios is not None) == measured


def test_missing_or_broken_files_are_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no whole samples .*; `dvc repro samples` makes them"):
        read_samples(tmp_path / "none")
    (tmp_path / "samples.safetensors").write_bytes(b"half")
    with pytest.raises(UserError, match="holds no whole samples"):
        read_samples(tmp_path)


def test_prompts_are_drawn_once_each_by_the_seed_and_stay_in_order(queries: list[Query]) -> None:
    many = [query | {"prompt_id": 4 * turn + index} for turn in range(25) for index, query in enumerate(queries)]
    chosen = [query["prompt_id"] for query in chosen_prompts(many, SampledParams(prompts=30, samples=2), "train", 1)]
    assert len(set(chosen)) == 30
    assert chosen == sorted(chosen)
    assert chosen != list(range(30))
    more = [query["prompt_id"] for query in chosen_prompts(many, SampledParams(prompts=40, samples=2), "train", 1)]
    assert set(chosen) < set(more)
    for split, seed in (("test", 1), ("train", 2)):
        others = chosen_prompts(many, SampledParams(prompts=30, samples=2), split, seed)
        assert [query["prompt_id"] for query in others] != chosen
    with pytest.raises(UserError, match="plan.test.prompts = 101: there are 100 prompts in the split; lower it"):
        chosen_prompts(many, SampledParams(prompts=101, samples=2), "test", 1)
