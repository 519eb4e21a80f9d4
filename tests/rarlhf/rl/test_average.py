"""The mean of the last iterations' weights: which iterations count, what it is, and where it stands."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from rarlhf.rl.average import WeightAverage
from rarlhf.rl.ppo import PPOTrainer

QUERIES = [[5 + i] * (1 + i % 3) for i in range(14)]
Make = Callable[..., PPOTrainer]


def weights(trainer: PPOTrainer) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in trainer.policy.named_parameters()}


def trained(trainer: PPOTrainer, path: Path) -> list[dict[str, Tensor]]:
    """Trains, and returns the weights after each iteration."""
    after: list[dict[str, Tensor]] = []
    keep = trainer.keep
    trainer.keep = lambda record: after.append(weights(trainer)) or keep(record)
    trainer.train(QUERIES, path)
    return after


@pytest.mark.parametrize(("share", "count"), [(0.28, 7), (0.3, 8), (0.99, 25), (0.01, 1)])
def test_the_share_of_the_iterations_is_exact(share: float, count: int) -> None:
    """Of 25; in floats .28 of them would be 8."""
    model = nn.Linear(1, 1)
    average = WeightAverage(model, share, 25)
    begun = []
    for iteration in range(-2, 26):  # with a warm-up of three rollouts
        average.add(iteration)
        begun.append(bool(average.mean))
    assert sum(begun) == count


def test_the_mean_is_of_the_weights_after_the_last_iterations(make_trainer: Make, tmp_path: Path) -> None:
    trainer = make_trainer(**{"ppo.iterations": 6, "ppo.averaged": 0.5})
    after = trained(trainer, tmp_path / "a.safetensors")
    result = weights(trainer)
    for name, weight in result.items():
        mean = torch.stack([step[name].double() for step in after[3:]]).mean(dim=0)
        torch.testing.assert_close(weight.double(), mean, rtol=1e-6, atol=1e-7)
    assert any(not torch.equal(result[name], after[-1][name]) for name in result)


def test_training_goes_on_with_its_own_weights(make_trainer: Make, tmp_path: Path) -> None:
    plain, averaged = make_trainer(), make_trainer(**{"ppo.averaged": 0.7})
    last = [trained(trainer, tmp_path / f"{i}.safetensors")[-1] for i, trainer in enumerate((plain, averaged))]
    assert plain.records == averaged.records
    assert all(torch.equal(last[0][name], last[1][name]) for name in last[0])
    assert all(torch.equal(last[0][name], weight) for name, weight in weights(plain).items())  # share 0: the last ones


def test_frozen_weights_are_neither_kept_nor_moved() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    average = WeightAverage(model, 0.5, 2)
    average.add(1)
    assert not average.tensors()
    average.add(2)
    assert set(average.tensors()) == {"average/1.weight", "average/1.bias"}
