"""Micro-batches found by memory: the search, and one trial with the accelerator's questions answered by hand."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from rarlhf.config.errors import UserError
from rarlhf.config.params import Params
from rarlhf.messages.progress import SilentRecorder
from rarlhf.models.episodes import Episodes
from rarlhf.rl import memory
from rarlhf.rl.memory import largest, with_micro_batch
from rarlhf.rl.parts import Session
from rarlhf.rl.ppo import PPOTrainer
from rarlhf.system.distributed import World
from rarlhf.system.machine import Machine


def room_for(most: int, tried: list[int]) -> Callable[[int], None]:
    def trial(size: int) -> None:
        tried.append(size)
        if size > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")

    return trial


@pytest.mark.parametrize(("most", "found", "tried"), [(12, 12, [12]), (5, 4, [12, 6, 4]), (1, 1, [12, 6, 4, 3, 2, 1])])
def test_the_largest_divisor_that_fits(most: int, found: int, tried: list[int]) -> None:
    seen: list[int] = []
    assert largest(12, room_for(most, seen)) == found
    assert seen == tried


def test_what_does_not_fit_at_all_is_told() -> None:
    with pytest.raises(UserError, match=r"one episode's .* does not fit .* model.gradient_checkpointing"):
        largest(4, room_for(0, []))


def test_a_cpu_takes_the_whole_mini_batch(params: Params, make_trainer: Callable[..., PPOTrainer]) -> None:
    trainer = make_trainer(**{"ppo.micro_batch_size": "auto"})
    found = with_micro_batch(trainer.ppo, trainer.policy, 3, Session(trainer.machine, SilentRecorder()))
    assert found.micro_batch_size == found.mini_batch_size == 3
    assert with_micro_batch(params.ppo, trainer.policy, 3, Session(trainer.machine, SilentRecorder())) is params.ppo


def test_a_trial_is_as_long_as_any_episode_and_leaves_nothing(
    make_trainer: Callable[..., PPOTrainer], machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = SimpleNamespace(total_memory=1000)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: card)
    policy = make_trainer().policy
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    shapes: list[tuple[int, ...]] = []
    taken: list[int] = []
    moments: list[torch.Size] = []
    values: list[torch.Tensor] = []
    forward, empty, empty_like = policy.forward, torch.empty, torch.empty_like

    def seen(episodes: Episodes) -> object:
        shapes.extend((tuple(episodes.queries.shape), tuple(episodes.responses.shape)))
        output = forward(episodes)
        output.values.register_hook(values.append)
        return output

    def counted(*sizes: int, **keywords: object) -> torch.Tensor:
        taken.append(sizes[0])
        return empty(*sizes, **keywords)

    def counted_like(tensor: torch.Tensor, **keywords: object) -> torch.Tensor:
        if isinstance(tensor, torch.nn.Parameter):
            moments.append(tensor.shape)
        return empty_like(tensor, **keywords)

    monkeypatch.setattr(policy, "forward", seen)
    monkeypatch.setattr(memory.torch, "empty_like", counted_like)
    monkeypatch.setattr(memory.torch, "empty", counted)
    memory._trial(policy, 3, 4, machine)
    assert shapes == [(3, 4), (3, 5)]
    assert 100 in taken  # a tenth of the card stays free
    assert len(moments) == 2 * len(list(policy.parameters()))  # Adam's two moments of every weight
    assert [tuple(value.shape) for value in values] == [(3, 5)]  # the backward pass was made
    assert all(parameter.grad is None for parameter in policy.parameters())
    assert all(torch.equal(value, before[name]) for name, value in policy.state_dict().items())


class Two(World):
    """Two processes, the other one with room for 4 episodes."""

    def max(self, x: float) -> float:
        return max(x, -4.0)


def test_the_smallest_finding_of_the_processes_counts(
    make_trainer: Callable[..., PPOTrainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(**{"ppo.batch_size": 12, "ppo.mini_batch_size": 12, "ppo.micro_batch_size": "auto"})
    for room, found in ((6, 4), (2, 2)):
        monkeypatch.setattr(memory, "_trial", lambda policy, size, *_, room=room: room_for(room, [])(size))
        card = Machine(torch.device("cuda"), torch.float32)
        ppo = with_micro_batch(trainer.ppo, trainer.policy, 3, Session(card, SilentRecorder(), Two()))
        assert ppo.micro_batch_size == found
