"""The penalty towards the constrained distribution p R, by hand."""

from collections.abc import Sequence
from math import log

import pytest
import torch
from torch import Tensor

from rarlhf.training.regularised import constrained, divergence, known_columns


def logit(probabilities: Sequence[float]) -> Tensor:
    return torch.tensor([probabilities], dtype=torch.float64).logit()


def test_the_constrained_distribution_by_hand() -> None:
    logprobs = torch.tensor([[0.5, 0.25, 0.25]], dtype=torch.float64).log()
    q = constrained(logprobs, logit([0.2, 0.8, 0.4])).exp()  # 0.1, 0.2 and 0.1 of Z = 0.4
    assert q[0].tolist() == pytest.approx([0.25, 0.5, 0.25], abs=1e-12)


def test_q_normalises_also_where_r_is_almost_0() -> None:
    torch.manual_seed(1)
    logprobs, worth = torch.randn(50, 300).log_softmax(dim=-1), 30 * torch.randn(50, 300) - 60
    total = constrained(logprobs, worth).exp().sum(dim=-1)
    torch.testing.assert_close(total, torch.ones(50), atol=1e-5, rtol=0)


def test_the_divergence_and_its_gradient_by_hand() -> None:
    p, q = [0.5, 0.25, 0.25], [0.25, 0.5, 0.25]
    logits = (torch.tensor([p], dtype=torch.float64).log() + 3.0).requires_grad_()
    worth = logit([0.2, 0.8, 0.4]).requires_grad_()
    kl = divergence(logits, worth.detach())
    assert kl.item() == pytest.approx(0.25 * log(0.5) + 0.5 * log(2), abs=1e-12)
    kl.sum().backward()
    assert logits.grad is not None
    assert logits.grad[0].tolist() == pytest.approx([a - b for a, b in zip(p, q, strict=True)], abs=1e-12)


def test_the_divergence_from_a_distribution_that_is_held() -> None:
    p, held, q = [0.2, 0.4, 0.4], [0.5, 0.25, 0.25], [0.25, 0.5, 0.25]
    logits = torch.tensor([p], dtype=torch.float64).log().requires_grad_()
    given = (torch.tensor([held], dtype=torch.float64).log() - 2.0).requires_grad_()
    kl = divergence(logits, logit([0.2, 0.8, 0.4]), given)
    assert kl.item() == pytest.approx(sum(b * log(b / a) for a, b in zip(p, q, strict=True)), abs=1e-12)
    kl.sum().backward()
    assert logits.grad is not None
    assert logits.grad[0].tolist() == pytest.approx([a - b for a, b in zip(p, q, strict=True)], abs=1e-12)
    assert given.grad is None


def test_r_of_one_size_asks_for_nothing() -> None:
    torch.manual_seed(2)
    logits = torch.randn(4, 9, dtype=torch.float64, requires_grad=True)
    kl = divergence(logits, torch.full((4, 9), -1.3, dtype=torch.float64))
    kl.sum().backward()
    assert logits.grad is not None
    assert kl.detach().abs().max() < 1e-12
    assert logits.grad.abs().max() < 1e-12


def test_the_tokens_that_have_a_penalty() -> None:
    """Three rows of 6, 4 and 6 tokens; a head that knows prefixes of 2 to 4 tokens; the last row is not related."""
    mask = torch.tensor([[1] * 6, [1, 1, 1, 1, 0, 0], [1] * 6])
    known = known_columns(mask, torch.tensor([True, True, False]), first=1, last=3)
    assert known.int().tolist() == [[0, 1, 1, 1, 0], [0, 1, 1, 0, 0], [0, 0, 0, 0, 0]]
