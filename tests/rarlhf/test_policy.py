"""Log-probabilities and values of given responses: against the plain model, and untouched by padding."""

import torch
from transformers import GPT2LMHeadModel

from rarlhf.policy import Episodes, Policy, Sampling, positions, response_logprobs

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
