"""Token log-probabilities with their own backward pass: against log_softmax, in values and gradients."""

import pytest
import torch
from torch import Tensor

import rarlhf.models.policy
from rarlhf.models.policy import Sampling, entropies, token_logprobs

B, T, V = 3, 4, 7
TOKENS = torch.randint(1, V, (B, T), generator=torch.Generator().manual_seed(3))
WEIGHTS = torch.randn(B, T, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
PLAIN = Sampling(1.0, 0, T, end_id=0)
SHAPED = [PLAIN, PLAIN._replace(temperature=0.7), PLAIN._replace(min_new_tokens=2), Sampling(1.6, T, T, end_id=0)]


def logits_of(dtype: torch.dtype = torch.float64) -> Tensor:
    draws = torch.Generator().manual_seed(2)
    return (3 * torch.randn(B, T, V, generator=draws, dtype=torch.float64)).to(dtype).requires_grad_()


def by_log_softmax(logits: Tensor, sampling: Sampling) -> Tensor:
    """The same by PyTorch's own functions, each with its own copy."""
    forbidden = torch.zeros(B, T, V, dtype=torch.bool)
    forbidden[:, : sampling.min_new_tokens, sampling.end_id] = True
    shaped = (logits / sampling.temperature).masked_fill(forbidden, -torch.inf)
    return torch.log_softmax(shaped, dim=-1).gather(-1, TOKENS.unsqueeze(-1)).squeeze(-1)


@pytest.mark.parametrize("sampling", SHAPED)
@pytest.mark.parametrize("working_set", [1, 2 * T * V, 10**6])
def test_values_and_gradients_are_those_of_log_softmax(
    sampling: Sampling, working_set: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rarlhf.models.policy, "WORKING_SET", working_set)
    one, other = logits_of(), logits_of()
    logprobs, expected = token_logprobs(one * 1.0, TOKENS, sampling), by_log_softmax(other, sampling)
    torch.testing.assert_close(logprobs, expected, atol=1e-14, rtol=1e-14)
    for values, logits in ((logprobs, one), (expected, other)):
        (values * WEIGHTS).sum().backward()
        assert logits.grad is not None
    torch.testing.assert_close(one.grad, other.grad, atol=1e-14, rtol=1e-14)


@pytest.mark.parametrize("sampling", SHAPED)
def test_the_gradient_is_the_quotient_of_differences(sampling: Sampling) -> None:
    """What gradcheck does, with one backward pass a graph."""
    logits, step = logits_of(), 1e-6

    def weighted(at: Tensor) -> Tensor:
        return (token_logprobs(at * 1.0, TOKENS, sampling) * WEIGHTS).sum()

    weighted(logits).backward()
    assert logits.grad is not None
    shifts = step * torch.eye(B * T * V, dtype=torch.float64).view(-1, B, T, V)
    with torch.no_grad():
        quotients = torch.stack([(weighted(logits + x) - weighted(logits - x)) / (2 * step) for x in shifts])
    torch.testing.assert_close(logits.grad.flatten(), quotients, atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize("sampling", SHAPED)
def test_bfloat16_logits_give_float32_values_and_a_bfloat16_gradient(sampling: Sampling) -> None:
    one = logits_of(torch.bfloat16)
    other = one.detach().double().requires_grad_()
    logprobs, expected = token_logprobs(one * 1.0, TOKENS, sampling), by_log_softmax(other, sampling)
    assert logprobs.dtype == torch.float32
    torch.testing.assert_close(logprobs.double(), expected, atol=1e-5, rtol=1e-5)
    (logprobs * WEIGHTS.float()).sum().backward()
    (expected * WEIGHTS).sum().backward()
    assert one.grad is not None
    assert other.grad is not None
    torch.testing.assert_close(one.grad.double(), other.grad, atol=1e-4, rtol=2**-8)  # one rounding to 8 bits


def test_the_gradient_takes_the_place_of_the_logits_and_so_runs_once() -> None:
    seen = []
    logits = logits_of() * 1.0
    logits.register_hook(lambda gradient: seen.append(gradient.data_ptr()))
    logprobs = token_logprobs(logits, TOKENS, PLAIN)
    logprobs.sum().backward(retain_graph=True)
    assert seen == [logits.data_ptr()]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        logprobs.sum().backward()


def test_a_masked_token_that_is_impossible_leaves_the_gradient_finite() -> None:
    logits = logits_of()
    tokens = TOKENS.clone()
    tokens[1, 0] = 0  # the end of text where it is forbidden, as padding may hold it
    logprobs = token_logprobs(logits * 1.0, tokens, PLAIN._replace(min_new_tokens=1))
    assert logprobs[1, 0] == -torch.inf
    torch.where(logprobs.isfinite(), logprobs, 0.0).sum().backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert (logits.grad[1, 0] == 0).all()


def test_entropy_by_hand() -> None:
    # probabilities 1/2, 1/4, 1/4: ln 2 / 2 + 2 ln 4 / 4 = 1.5 ln 2; with the first one forbidden, 1/2 and 1/2: ln 2
    logits = torch.tensor([0.5, 0.25, 0.25]).log().expand(2, 2, 3)
    ln2 = 0.6931472
    plain = torch.full((2, 2), 1.5 * ln2)
    torch.testing.assert_close(entropies(logits, Sampling(1.0, 0, 2, end_id=0)), plain)
    forced = torch.tensor([[ln2, 1.5 * ln2]] * 2)
    torch.testing.assert_close(entropies(logits, Sampling(1.0, 1, 2, end_id=0)), forced)
