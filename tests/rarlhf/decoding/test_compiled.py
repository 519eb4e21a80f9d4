"""Decoding with a cache of fixed size: the tokens of the growing one; the compiler itself runs in one test."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import GPT2LMHeadModel, StaticCache

from rarlhf.config.errors import UserError
from rarlhf.decoding.compiled import CompiledSteps
from rarlhf.decoding.prompts import left_pad
from rarlhf.decoding.sampling import Decoding, sample_responses
from rarlhf.models.policy import Sampling
from rarlhf.rl.ppo import PPOTrainer
from tests.rarlhf.small import parts

SAMPLING = Sampling(temperature=1.0, min_new_tokens=0, max_new_tokens=6, end_id=0)
QUERIES = [[5, 6, 7], [8], [9, 10], [5, 5, 5]]
UNIFORMS = torch.rand(4, 6, generator=torch.Generator().manual_seed(8))


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)


def drawn(lm: GPT2LMHeadModel, queries: list[list[int]], compiled: CompiledSteps | None) -> Any:
    prompts = left_pad(queries, 0, torch.device("cpu"))
    decoding = Decoding(lm, SAMPLING, compiled=compiled)
    return sample_responses(decoding, prompts, UNIFORMS[: len(queries)]).responses.tolist()


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_fixed_cache_draws_what_the_growing_one_draws(lm: GPT2LMHeadModel, attention: str) -> None:
    lm.set_attn_implementation(attention)
    steps = CompiledSteps(lm)
    for queries in (QUERIES, QUERIES[::-1], QUERIES[:2], [[5], [6], [7], [8]], QUERIES):  # caches are used again
        assert drawn(lm, queries, steps) == drawn(lm, queries, None)
    assert len(steps.caches) == 3


@pytest.mark.usefixtures("uncompiled")
def test_what_an_earlier_batch_left_in_the_cache_is_not_seen(lm: GPT2LMHeadModel) -> None:
    steps = CompiledSteps(lm)
    first = drawn(lm, QUERIES, steps)
    drawn(lm, [[30, 31, 32]] * 4, steps)
    assert drawn(lm, QUERIES, steps) == first


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the compiler's own
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")
def test_the_compiled_pass_draws_what_the_eager_one_draws(lm: GPT2LMHeadModel) -> None:
    assert drawn(lm, QUERIES, CompiledSteps(lm)) == drawn(lm, QUERIES, None)


@pytest.mark.usefixtures("uncompiled")
def test_a_trainer_decodes_so_where_it_is_asked_to(make_trainer: Callable[..., PPOTrainer]) -> None:
    eager, other = make_trainer(), make_trainer()
    models, recipe, session = parts(other)
    compiled = PPOTrainer(models, recipe, replace(session, machine=replace(other.machine, compiled=True)))
    rollouts = [trainer.collect_rollout([[5, 6], [7], [8, 9, 10]], 1) for trainer in (eager, compiled)]
    torch.testing.assert_close(rollouts[0].episodes.responses, rollouts[1].episodes.responses, rtol=0, atol=0)
    assert list(compiled.compiled.caches) == [(3, 8)]  # rows, and 3 + 5 tokens
    assert (eager.settings["runtime.decode"], compiled.settings["runtime.decode"]) == ("eager", "compiled")


def test_every_compiled_pass_of_two_batches_has_the_same_shapes_and_the_same_cache(
    lm: GPT2LMHeadModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a graph of an accelerator needs to be replayed, and what keeps the compiler from compiling again."""
    seen: list[object] = []

    def watched(forward: Callable[..., Any], dynamic: bool, **_: object) -> Callable[..., Any]:
        assert not dynamic

        def passed(past_key_values: StaticCache, **inputs: Any) -> Any:
            output = forward(past_key_values=past_key_values, **inputs)
            tensors = {name: value for name, value in inputs.items() if isinstance(value, torch.Tensor)}
            forms = {name: (of.shape, of.stride(), of.dtype) for name, of in tensors.items()}
            layers = past_key_values.layers
            seen.append((forms, [(layer.keys.data_ptr(), layer.values.data_ptr()) for layer in layers]))
            return output

        return passed

    monkeypatch.setattr(torch, "compile", watched)
    steps = CompiledSteps(lm)
    for queries in (QUERIES, [[30, 31, 32], [33], [34, 35, 36], [37]]):
        drawn(lm, queries, steps)
    assert len(seen) >= 8  # single tokens after two passes over queries
    assert all(each == seen[0] for each in seen)
    forms = seen[0][0]  # type: ignore[index]
    assert {name: tuple(form[0]) for name, form in forms.items()} == {
        "input_ids": (4, 1),
        "attention_mask": (4, 1, 1, 3 + 6),
        "position_ids": (4, 1),
    }
    assert forms["attention_mask"][2] == torch.bool


def test_attention_without_masks_is_refused(lm: GPT2LMHeadModel) -> None:
    lm.config._attn_implementation = "flash_attention_2"
    with pytest.raises(UserError, match=r"runtime.decode = 'compiled': not with attention 'flash_attention_2'"):
        CompiledSteps(lm)
