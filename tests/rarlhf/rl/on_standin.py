"""A whole iteration on an accelerator that is not there (tests/standin.py).

test_device.py runs this in a process of its own, because PyTorch keeps the device for an accelerator until the end.
"""

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import nn

from rarlhf.rl.parts import Session
from rarlhf.rl.ppo import PPOTrainer
from rarlhf.system.machine import Machine, quieten_libraries
from tests.rarlhf.small import Keeping, parts
from tests.standin import DEVICE, Held, Standin, move

PADDED = [[5, 6, 7], [8, 9]] * 4
EQUAL = [[5, 6, 7], [8, 9, 10]] * 4


def on_device(trainer: PPOTrainer) -> PPOTrainer:
    models, recipe, session = parts(trainer)
    move(models.policy)
    with models.ref_policy() as lm:
        move(lm)
    return PPOTrainer(models, recipe, Session(Machine(DEVICE, torch.float32), session.recorder))


def iterated(trainer: PPOTrainer) -> list[Mapping[str, float]]:
    """The records of two iterations without their seconds; the second one is of weights that have moved."""
    for iteration in (1, 2):
        trainer.step(trainer.collect_rollout(PADDED, iteration), iteration)
    assert isinstance(trainer.recorder, Keeping)
    return [{key: row[key] for key in row if not key.startswith("time/")} for _, row in trainer.recorder.rows]


@pytest.mark.parametrize("logprobs", ["recompute", "decode"])
def test_two_iterations_on_a_device_are_those_of_the_cpu(
    make_trainer: Callable[..., PPOTrainer], logprobs: str
) -> None:
    expected = iterated(make_trainer(**{"ppo.rollout_logprobs": logprobs}))
    with Standin():
        trainer = on_device(make_trainer(**{"ppo.rollout_logprobs": logprobs}))
        assert all(isinstance(weight, Held) for weight in trainer.policy.parameters())
        found = iterated(trainer)
    for row, wanted in zip(found, expected, strict=True):
        assert row == pytest.approx(wanted, rel=1e-4, abs=1e-6)  # kernels differ in their rounding


def test_a_tensor_of_the_cpu_is_refused_there() -> None:
    with Standin():
        layer = nn.Linear(3, 2)
        move(layer)
        assert layer(torch.ones(4, 3, device=DEVICE)).shape == (4, 2)
        with pytest.raises(RuntimeError, match="expected all tensors to be on the same device"):
            layer(torch.ones(4, 3))


def test_decoding_does_not_wait_for_each_token(make_trainer: Callable[..., PPOTrainer]) -> None:
    quieten_libraries()
    waits = {}
    for tokens in (8, 24):
        with Standin() as device:
            trainer = on_device(make_trainer(**{"ppo.max_new_tokens": tokens, "ppo.min_new_tokens": tokens}))
            assert trainer.generate(EQUAL, 1).responses.shape[1] == tokens
            waits[tokens] = len(device.waits)
    assert 0 < waits[24] - waits[8] <= 2  # one look in eight tokens at whether all have ended
