"""Log-probabilities and values of given responses: against the plain model, and untouched by padding."""

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import GPT2LMHeadModel

import rarlhf.models.policy
from rarlhf.models.episodes import Episodes
from rarlhf.models.policy import Policy, Sampling, logits_of, positions, response_logprobs, response_states

SAMPLING = Sampling(temperature=1.0, min_new_tokens=0, max_new_tokens=3, end_id=0)


def episodes_of(pad_left: int = 0, pad_right: int = 0) -> Episodes:
    """Two episodes of 2 + 3 and 1 + 2 tokens with more or less padding."""
    queries = torch.tensor([[0] * pad_left + [5, 6], [0] * pad_left + [0, 7]])
    query_mask = torch.tensor([[False] * pad_left + [True, True], [False] * pad_left + [False, True]])
    responses = torch.tensor([[8, 9, 10] + [0] * pad_right, [11, 12, 0] + [0] * pad_right])
    response_mask = torch.tensor([[True] * 3 + [False] * pad_right, [True, True, False] + [False] * pad_right])
    return Episodes(queries, query_mask, responses, response_mask)


def test_logprobs_are_those_of_the_plain_model(lm: GPT2LMHeadModel) -> None:
    logprobs = response_logprobs(lm, episodes_of(), SAMPLING)
    expected = torch.log_softmax(lm(torch.tensor([[5, 6, 8, 9, 10]])).logits, dim=-1)[0]
    for t, token in enumerate((8, 9, 10)):
        torch.testing.assert_close(
            logprobs[0, t], expected[1 + t, token]
        )  # position 1 predicts the first response token
    shorter = torch.log_softmax(lm(torch.tensor([[7, 11, 12]])).logits, dim=-1)[0]
    torch.testing.assert_close(logprobs[1, :2], torch.stack([shorter[0, 11], shorter[1, 12]]))


def test_padding_changes_nothing(lm: GPT2LMHeadModel) -> None:
    policy = Policy(lm, SAMPLING).eval()
    plain, padded = policy(episodes_of()), policy(episodes_of(pad_left=3, pad_right=2))
    mask = episodes_of().response_mask
    for one, other in zip(plain, padded, strict=True):
        torch.testing.assert_close(one[mask], other[:, :3][mask], atol=1e-5, rtol=1e-5)


def test_wrong_positions_would_change_something(lm: GPT2LMHeadModel) -> None:
    mask = episodes_of(pad_left=3).query_mask
    assert positions(mask).tolist() == [[0, 0, 0, 0, 1], [0, 0, 0, 0, 0]]
    shifted = lm(torch.tensor([[5, 6]]), position_ids=torch.tensor([[3, 4]])).logits
    assert not torch.allclose(shifted, lm(torch.tensor([[5, 6]])).logits, atol=1e-3)


def test_temperature_and_forced_tokens_shape_the_distribution() -> None:
    logits = torch.tensor([[[1.0, 2.0], [1.0, 2.0], [1.0, 2.0]]])
    shaped = Sampling(0.5, 2, 3, end_id=1).shape(logits, first=0)
    # divided by .5; the end of text is impossible before two tokens
    assert shaped.tolist() == [[[2.0, -torch.inf], [2.0, -torch.inf], [2.0, 4.0]]]
    assert Sampling(0.5, 2, 3, end_id=1).shape(logits[:, :1], first=1).tolist() == [[[2.0, -torch.inf]]]


def test_value_gradient_reaches_backbone_and_head(lm: GPT2LMHeadModel) -> None:
    policy = Policy(lm, SAMPLING)
    policy(episodes_of()).values.sum().backward()
    assert policy.value_head.weight.grad is not None
    assert lm.transformer.h[0].attn.c_attn.weight.grad.abs().sum() > 0


Pair = tuple[GPT2LMHeadModel, GPT2LMHeadModel]
BFLOAT16 = torch.autocast("cpu", dtype=torch.bfloat16)


def trained(lm: GPT2LMHeadModel) -> Tensor:
    with BFLOAT16:
        return Policy(lm, SAMPLING)(episodes_of()).logprobs


def measured(lm: GPT2LMHeadModel) -> Tensor:
    with BFLOAT16:
        return torch.cat(Policy(lm, SAMPLING).measure(episodes_of())[::2])  # log-probabilities and entropies


def of_reference(lm: GPT2LMHeadModel) -> Tensor:
    with BFLOAT16, torch.no_grad():
        return response_logprobs(lm, episodes_of(), SAMPLING)


def stored_in_bfloat16(lm: GPT2LMHeadModel) -> Tensor:
    with torch.no_grad():
        return response_logprobs(lm.bfloat16(), episodes_of(), SAMPLING)


@pytest.mark.parametrize("way", [trained, measured, of_reference, stored_in_bfloat16])
def test_an_offset_of_all_logits_changes_no_logprob_in_bfloat16(shifted: Pair, way: Callable[..., Tensor]) -> None:
    """At -60 the steps of bfloat16 are 0.25, and those of float32 4e-6."""
    plain, lower = (way(lm) for lm in shifted)
    torch.testing.assert_close(lower, plain, atol=2e-5, rtol=0)


def test_the_head_in_bfloat16_is_that_of_float32_on_the_same_states(lm: GPT2LMHeadModel) -> None:
    with BFLOAT16, torch.no_grad():
        states = response_states(lm, episodes_of())
        logits = logits_of(lm, states)
    expected = states.double() @ lm.lm_head.weight.double().T
    torch.testing.assert_close(logits.double(), expected, atol=1e-5, rtol=1e-5)
    rounded = states.bfloat16() @ lm.lm_head.weight.bfloat16().T  # negative control
    assert (rounded.double() - expected).abs().max() > 1e-3


def test_a_head_with_a_bias_is_widened_in_pieces(monkeypatch: pytest.MonkeyPatch, lm: GPT2LMHeadModel) -> None:
    lm.lm_head = torch.nn.Linear(16, 280).bfloat16()
    states = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(1)).bfloat16()
    expected = torch.nn.functional.linear(states.float(), lm.lm_head.weight.float(), lm.lm_head.bias.float())
    monkeypatch.setattr(rarlhf.models.policy, "WIDENED", 16 * 100)  # pieces of 100, 100 and 80 tokens
    torch.testing.assert_close(logits_of(lm, states), expected, atol=1e-6, rtol=1e-6)


class Doubling(torch.nn.Linear):
    """A head that is more than its weight, as one with an adapter on it is."""

    def forward(self, states: Tensor) -> Tensor:
        return 2 * super().forward(states)


def test_a_head_that_is_more_than_its_weight_is_asked_itself(lm: GPT2LMHeadModel) -> None:
    lm.lm_head = Doubling(16, 280)
    states = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(1))
    expected = lm.lm_head(states)
    with BFLOAT16:
        assert torch.equal(logits_of(lm, states), expected)


def test_gradients_in_bfloat16_are_those_of_float32(shifted: Pair) -> None:
    """To the rounding of the backbone; the offset has no part in them."""
    weights = torch.tensor([[1.0, -0.5, 0.3], [0.7, -1.0, 0.0]])
    gradients = []
    for lm, context in ((shifted[0], nullcontext()), *((lm, BFLOAT16) for lm in shifted)):
        lm.zero_grad()
        with context:
            logprobs = Policy(lm, SAMPLING)(episodes_of()).logprobs
        (logprobs * weights).sum().backward()
        parameters = (lm.transformer.h[0].mlp.c_fc.weight, lm.lm_head.weight)
        gradients.append([parameter.grad.clone() for parameter in parameters])
    exact, *rounded = gradients
    for ours in rounded:
        for one, other in zip(ours, exact, strict=True):
            assert (one[:, 1:] - other[:, 1:]).norm() < 0.02 * other[:, 1:].norm()


def test_the_gradient_of_a_bias_is_the_sum_of_its_logits_gradients(lm: GPT2LMHeadModel) -> None:
    lm.lm_head = torch.nn.Linear(16, 280)
    upstream = torch.randn(2, 3, 280, generator=torch.Generator().manual_seed(2))
    with BFLOAT16:
        logits_of(lm, torch.zeros(2, 3, 16)).backward(upstream)
    torch.testing.assert_close(lm.lm_head.bias.grad, upstream.sum(dim=(0, 1)))


@pytest.mark.parametrize("padded", [False, True])
def test_fused_attention_takes_the_masks_of_training(padded: bool, lm: GPT2LMHeadModel) -> None:
    """Plain products are switched off: attention weights of (B, heads, S, S) are never in memory."""
    episodes = episodes_of()
    if not padded:
        episodes = episodes._replace(query_mask=torch.ones_like(episodes.query_mask))
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        response_states(lm, episodes).square().sum().backward()
        with pytest.raises(RuntimeError, match="No available kernel"):  # negative control: a mask that wants a gradient
            torch.nn.functional.scaled_dot_product_attention(
                *torch.ones(3, 1, 2, 4, 8), attn_mask=torch.zeros(4, 4, requires_grad=True)
            )
    weight = lm.transformer.h[0].attn.c_attn.weight
    assert weight.grad is not None and float(weight.grad.abs().max()) > 0
