"""One-pass activations: the same function, and nothing else changed."""

from copy import deepcopy

import torch
from transformers import GPT2LMHeadModel, GPTJConfig, GPTJForCausalLM

from rarlhf.models.fused import SLOW_TANH_GELUS, fuse_activations


def slow(model: torch.nn.Module) -> int:
    return sum(isinstance(module, SLOW_TANH_GELUS) for module in model.modules())


def test_the_function_is_the_same(lm: GPT2LMHeadModel) -> None:
    fused = deepcopy(lm)
    fuse_activations(fused)
    assert slow(lm) == 2  # one a layer
    assert slow(fused) == 0
    tokens = torch.arange(5, 15).view(2, 5)
    torch.testing.assert_close(fused(tokens).logits, lm(tokens).logits, atol=1e-5, rtol=1e-5)
    x = torch.linspace(-6, 6, 1001, dtype=torch.float64)
    torch.testing.assert_close(fused.transformer.h[0].mlp.act(x), lm.transformer.h[0].mlp.act(x))
    assert not torch.allclose(torch.nn.functional.gelu(x), lm.transformer.h[0].mlp.act(x), atol=1e-5)  # the other GELU


def test_weights_and_config_stay(lm: GPT2LMHeadModel) -> None:
    before, config = list(lm.state_dict()), lm.config.to_dict()
    fuse_activations(lm)
    assert list(lm.state_dict()) == before
    assert lm.config.to_dict() == config


def test_a_gptj_too() -> None:
    model = GPTJForCausalLM(GPTJConfig(vocab_size=50, n_positions=32, n_embd=16, n_layer=2, n_head=2, rotary_dim=4))
    assert slow(model) == 2
    fuse_activations(model)
    assert slow(model) == 0
