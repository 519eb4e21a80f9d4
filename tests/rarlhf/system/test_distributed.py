"""How processes share rows, gradients and news; test_two_processes.py runs real ones."""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import accelerate
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

import rarlhf.system.distributed
from rarlhf.config.errors import UserError
from rarlhf.models.episodes import Episodes
from rarlhf.rl.ppo import PPOTrainer
from rarlhf.rl.rollout import Rollout
from rarlhf.system.distributed import Processes, World
from tests.rarlhf.small import parts


@pytest.mark.parametrize(("rows", "size"), [(7, 3), (6, 2), (2, 3), (5, 1)])
def test_the_shares_are_all_rows_in_order(rows: int, size: int) -> None:
    shares = []
    for rank in range(size):
        world = World()
        world.rank, world.size = rank, size
        shares.append(world.share(rows))
    assert torch.cat(shares).tolist() == list(range(rows))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_more_processes_than_episodes_are_refused(make_trainer: Callable[..., PPOTrainer]) -> None:
    trainer = make_trainer()
    world = World()
    world.size = 7
    models, recipe, session = parts(trainer)
    with pytest.raises(UserError, match="ppo.batch_size = 6: fewer episodes than the 7 processes"):
        PPOTrainer(models, recipe, replace(session, world=world))


def test_a_single_process_cannot_divide_weights(make_trainer: Callable[..., PPOTrainer]) -> None:
    models, recipe, session = parts(make_trainer())
    with pytest.raises(UserError, match="runtime.sharding = 'full': this is a single process.* or set none") as told:
        PPOTrainer(models, recipe, replace(session, machine=replace(session.machine, sharded=True)))
    assert "\n" not in str(told.value)


def test_processes_with_other_inputs_are_refused() -> None:
    world = World()
    rarlhf.system.distributed.refuse_unlike(world, "a")
    world.gather = lambda part: ["a", part, "a", "c"]  # type: ignore[assignment, method-assign]
    with pytest.raises(UserError, match="process 1, 3 has other inputs than the first: give every machine the same"):
        rarlhf.system.distributed.refuse_unlike(world, "b")


OURS = torch.device("cuda", 1)


class Nccl:
    """Notes which devices the tensors of each collective are on; fake tensors need no GPU."""

    def __init__(self) -> None:
        self.devices: list[torch.device] = []

    def all_reduce(self, x: Tensor) -> None:
        self.devices.append(x.device)

    def all_gather_object(self, parts: list[Any], part: Any) -> None:
        self.devices += [tensor.device for tensor in tensors_of(part)]
        parts[:] = [part] * len(parts)

    def broadcast_object_list(self, told: list[Any], src: int) -> None:
        assert (len(told), src) == (1, 0)
        told[0] = UserError("no such file")


def tensors_of(rollout: Rollout) -> list[Tensor]:
    fields = (getattr(rollout, name) for name in ("logprobs", "ref_logprobs", "values", "entropy", "scores"))
    return [*rollout.episodes, *fields]


@pytest.fixture
def nccl(monkeypatch: pytest.MonkeyPatch) -> Nccl:
    fake = Nccl()
    state = SimpleNamespace(process_index=1, num_processes=2, device=OURS)
    monkeypatch.setattr(accelerate, "PartialState", lambda **_: state)
    monkeypatch.setattr(rarlhf.system.distributed, "distributed", fake)
    return fake


def test_what_is_gathered_travels_on_the_cpu_and_arrives_on_the_own_device(nccl: Nccl) -> None:
    with FakeTensorMode():
        floats = torch.empty(2, 3, device=OURS)
        episodes = Episodes(floats.long(), floats.bool(), floats.long(), floats.bool())
        parts = Processes().gather(Rollout(episodes, floats, floats, floats, floats, torch.empty(2, device=OURS)))
    assert nccl.devices == [torch.device("cpu")] * 9
    assert [tensor.device for part in parts for tensor in tensors_of(part)] == [OURS] * 18


def test_gradients_are_added_up_on_the_own_device(nccl: Nccl, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[torch.device] = []

    def everywhere(x: Tensor) -> list[float]:
        counted.append(x.device)
        return [1.0] * len(x)

    with FakeTensorMode():
        parameters = [torch.nn.Parameter(torch.empty(2, device=OURS)) for _ in range(3)]
        monkeypatch.setattr(FakeTensor, "tolist", everywhere)  # a fake tensor has no values
        Processes().sum_gradients(parameters)
    assert counted == [OURS]
    assert nccl.devices == [OURS] * 4  # which process has which gradient, and the three gradients
    assert [parameter.grad.device for parameter in parameters] == [OURS] * 3


def test_what_fails_in_the_first_process_fails_in_all(nccl: Nccl) -> None:
    with pytest.raises(UserError, match="no such file"):
        Processes().first(lambda: pytest.fail("the second process must not read"))


@pytest.mark.parametrize("cpu", [True, False])
def test_processes_that_compute_on_the_cpu_are_joined_there(cpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `runtime.device: cpu` beside a GPU, NCCL would be handed tensors of the CPU."""
    asked: list[bool] = []
    device = torch.device("cpu")

    def state(cpu: bool, **_: object) -> SimpleNamespace:
        asked.append(cpu)
        return SimpleNamespace(process_index=0, num_processes=2, device=device)

    monkeypatch.setattr(accelerate, "PartialState", state)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    rarlhf.system.distributed.world(cpu)
    assert asked == [cpu]


def test_numbers_and_containers_keep_their_form_when_moved() -> None:
    one = torch.ones(2)
    part = {"a": [one, 3], "b": (one, None), "c": "text"}
    assert str(rarlhf.system.distributed.moved(part, torch.device("cpu"))) == str(part)
