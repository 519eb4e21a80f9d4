"""What is kept from decoding is what full passes give, but for rounding; the cache and the padding change nothing."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import DynamicCache, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

import rarlhf.decoding.eager
from rarlhf.decoding.prompts import left_pad
from rarlhf.decoding.sampling import Columns, Decoding, sample_responses
from rarlhf.models.episodes import Measured, joined
from rarlhf.models.policy import Policy, Sampling
from rarlhf.rl.ppo import PPOTrainer
from rarlhf.system.machine import Machine

CPU = torch.device("cpu")
EVEN = [[5, 6, 7], [8, 9, 3], [9, 10, 4], [5, 5, 5]]
UNEVEN = [[5, 6, 7], [8], [9, 10], [5, 5, 5]]
SAMPLING = Sampling(temperature=0.8, min_new_tokens=2, max_new_tokens=6, end_id=0)
UNIFORMS = torch.rand(4, 6, generator=torch.Generator().manual_seed(8))
QUERIES = [[5 + i] * (1 + i % 3) for i in range(14)]
Make = Callable[..., PPOTrainer]


def llama() -> LlamaForCausalLM:
    """A small model of another family: rotary positions, grouped key heads."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=280, num_key_value_heads=2, bos_token_id=0, eos_token_id=0, **sizes)
    return LlamaForCausalLM(config).eval()


@pytest.fixture(params=["gpt2", "llama"])
def model(request: pytest.FixtureRequest, lm: GPT2LMHeadModel) -> PreTrainedModel:
    return lm if request.param == "gpt2" else llama()


@pytest.mark.parametrize("queries", [EVEN, UNEVEN])
def test_measured_columns_are_those_of_a_full_pass(model: PreTrainedModel, queries: list[list[int]]) -> None:
    policy = Policy(model, SAMPLING).eval()
    columns = Columns(policy)
    episodes = sample_responses(Decoding(model, SAMPLING), left_pad(queries, 0, CPU), UNIFORMS, columns)
    real = episodes.response_mask
    full = policy.measure(episodes)
    for one, other in zip(columns.measured(), full, strict=True):
        torch.testing.assert_close(one[real], other[real], atol=1e-5, rtol=1e-5)
    policy.sampling = SAMPLING._replace(temperature=1.0)  # negative control
    assert not torch.allclose(columns.measured().logprobs[real], policy.measure(episodes).logprobs[real], atol=1e-3)


@pytest.mark.parametrize("queries", [EVEN, UNEVEN])
def test_the_roomy_cache_is_the_librarys(
    model: PreTrainedModel, queries: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    args = (Decoding(model, SAMPLING), left_pad(queries, 0, CPU), UNIFORMS)
    ours = sample_responses(*args)
    calls = []

    def library(lm: PreTrainedModel, room: int) -> DynamicCache:
        calls.append(room)
        return DynamicCache(config=lm.config)

    monkeypatch.setattr(rarlhf.decoding.eager, "roomy_cache", library)
    theirs = sample_responses(*args)
    assert calls == [3 + 6]
    assert torch.equal(ours.responses, theirs.responses)
    assert torch.equal(ours.response_mask, theirs.response_mask)


def test_the_cache_takes_its_room_once(lm: GPT2LMHeadModel) -> None:
    cache = rarlhf.decoding.eager.roomy_cache(lm, 5)
    seen = []
    for start in range(3):
        key = torch.full((1, 2, 1, 4), float(start))
        keys, values = cache.update(key, -key, layer_idx=0)
        assert keys[0, 0, :, 0].tolist() == [float(i) for i in range(start + 1)]
        assert torch.equal(values, -keys)
        seen.append(keys.data_ptr())
    assert len(set(seen)) == 1
    assert cache.get_seq_length() == 3


def test_joined_widens_with_zeros() -> None:
    one, other = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0]])
    together = joined([Measured(one, one, one), Measured(other, other, other)])
    assert together.logprobs.tolist() == [[1.0, 2.0], [3.0, 0.0]]


def test_the_trainer_keeps_them_where_asked(make_trainer: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    recomputing = make_trainer(**{"ppo.rollout_logprobs": "recompute"})
    decoding = make_trainer(**{"ppo.rollout_logprobs": "decode", "ppo.decode_batch_size": 4})
    monkeypatch.setattr(decoding.policy, "measure", lambda episodes: pytest.fail("a second pass"))
    one, other = (trainer.collect_rollout(QUERIES[:6], 1) for trainer in (recomputing, decoding))
    mask = one.episodes.response_mask
    assert len(set(mask.sum(dim=1).tolist())) > 1
    assert torch.equal(one.episodes.responses, other.episodes.responses)
    for field in ("logprobs", "values", "entropy"):
        kept, expected = getattr(other, field), getattr(one, field)
        torch.testing.assert_close(kept[mask], expected[mask], atol=1e-5, rtol=1e-5)
        assert not torch.equal(kept[mask], expected[mask])  # the recomputed ones are another computation


def test_a_run_on_kept_logprobs_is_the_same_but_for_rounding(make_trainer: Make, tmp_path: Path) -> None:
    names = ("recompute", "decode")
    runs = [make_trainer(**{"ppo.rollout_logprobs": name}).train(QUERIES, tmp_path / name) for name in names]
    for one, other in zip(*runs, strict=True):
        assert one == pytest.approx(other, abs=1e-3, rel=1e-3)


def test_in_reduced_precision_the_first_ratio_is_one_too(make_trainer: Make) -> None:
    """The pass that measures and the pass that trains use the same kernels."""
    trainer = make_trainer(**{"ppo.micro_batch_size": 6})
    trainer.machine = Machine(torch.device("cpu"), torch.bfloat16)
    rollout = trainer.collect_rollout(QUERIES[:6], 1)
    with trainer.machine.autocast():
        logprobs = trainer.policy(rollout.episodes).logprobs
    assert torch.equal(logprobs, rollout.logprobs)


def test_an_offset_of_all_logits_changes_nothing_drawn_in_bfloat16(
    shifted: tuple[GPT2LMHeadModel, GPT2LMHeadModel],
) -> None:
    drawn = []
    for lm in shifted:
        columns = Columns(Policy(lm, SAMPLING).eval())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            sample_responses(Decoding(lm, SAMPLING), left_pad(UNEVEN, 0, CPU), UNIFORMS, columns)
        drawn.append(columns.measured())
    plain, lower = drawn
    torch.testing.assert_close(lower.logprobs, plain.logprobs, atol=2e-5, rtol=0)
    torch.testing.assert_close(lower.entropy, plain.entropy, atol=1e-4, rtol=0)  # its sum has the offset in it
