"""The loss of Quark, by hand."""

from math import log

import pytest
import torch

from rarlhf.models.policy import Sampling
from rarlhf.training.quark import loss_terms

PLAIN = Sampling(1.0, 0, 5, 0)


def test_the_loss_by_hand() -> None:
    """Two response tokens, three entries and a token of a quantile, whose logit of 9 must count for nothing."""
    policy = torch.tensor([[[1 / 2, 1 / 4, 1 / 4, 0], [1 / 5, 2 / 5, 2 / 5, 0]]]).log()
    policy[..., 3] = 9.0
    reference = torch.tensor([[[1 / 3, 1 / 3, 1 / 3], [1 / 2, 1 / 4, 1 / 4]]]).log()
    terms = loss_terms(policy, reference, torch.tensor([[0, 2]]), PLAIN, [3])
    kl = [log(3) - 1.5 * log(2), 0.2 * log(0.4) + 0.8 * log(1.6)]
    entropy = [1.5 * log(2), -0.2 * log(0.2) - 0.8 * log(0.4)]
    assert terms.nll[0].tolist() == pytest.approx([log(2), log(2.5)], abs=1e-6)
    assert terms.kl[0].tolist() == pytest.approx(kl, abs=1e-6)
    assert terms.entropy[0].tolist() == pytest.approx(entropy, abs=1e-6)


def test_added_tokens_have_no_probability_and_no_gradient() -> None:
    torch.manual_seed(3)
    logits = torch.randn(2, 4, 9, requires_grad=True)
    terms = loss_terms(logits, torch.randn(2, 4, 7), torch.randint(0, 5, (2, 4)), PLAIN, [6, 7, 8])
    (terms.nll + terms.kl - terms.entropy).sum().backward()
    assert logits.grad is not None
    assert (logits.grad[..., 6:] == 0).all()
    assert (logits.grad[..., :6] != 0).all()
    assert logits.grad.isfinite().all()


def test_an_end_that_is_not_allowed_yet_counts_for_nothing() -> None:
    """The same shaping as in sampling, and no number that is not finite comes of minus infinity in both models."""
    torch.manual_seed(4)
    logits = torch.randn(1, 2, 6, requires_grad=True)
    sampling = Sampling(0.7, 1, 2, 0)
    terms = loss_terms(logits, torch.randn(1, 2, 5), torch.tensor([[3, 0]]), sampling, [5])
    allowed = (logits[0, 0, 1:5] / 0.7).log_softmax(dim=0)
    assert terms.nll[0, 0].item() == pytest.approx(-allowed[2].item(), abs=1e-6)
    assert terms.entropy[0, 0].item() == pytest.approx(-(allowed.exp() * allowed).sum().item(), abs=1e-6)
    (terms.kl.sum() + terms.entropy.sum()).backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert logits.grad[0, 0, 0] == 0
