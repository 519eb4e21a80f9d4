"""Interrupted trainings, in one process: what each part of the checkpoint is for, signals, refusals, divergence."""

import json
import re
import signal
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from rarlhf.config.errors import UserError
from rarlhf.rewards.scorers import Score
from rarlhf.rl.checkpoint import load_checkpoint, save_checkpoint
from rarlhf.rl.ppo import PPOTrainer
from rarlhf.system.distributed import World
from rarlhf.system.signals import HeldSignals

QUERIES = [[5 + i] * (1 + i % 3) for i in range(14)]
VALUES = {"ppo.iterations": 6, "ppo.checkpoint_every": 2, "ppo.value_warmup": 3, "kl.rate": 0.1, "kl.target": 2.0}
Make = Callable[..., PPOTrainer]


def weights(trainer: PPOTrainer) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in trainer.policy.parameters()]


def same(one: PPOTrainer, other: PPOTrainer) -> bool:
    """Bit for bit, records too."""
    equal = all(torch.equal(a, b) for a, b in zip(weights(one), weights(other), strict=True))
    return equal and one.records == other.records


def lengths(texts: Sequence[str]) -> Tensor:
    return torch.tensor([float(len(text)) for text in texts])


def doing(call: int, act: Callable[[], None]) -> Score:
    """A score that acts at its `call`-th call, that is in that rollout, the warm-up's counted."""
    seen = 0

    def score(texts: Sequence[str]) -> Tensor:
        nonlocal seen
        seen += 1
        if seen == call:
            act()
        return lengths(texts)

    return score


class Whole(NamedTuple):
    """A training that was never stopped, and the checkpoint of iteration 4 that it leaves."""

    trainer: PPOTrainer
    checkpoint: bytes


WHOLE: dict[str, Whole] = {}  # by settings, since many tests are held against the same training


def whole(make: Callable[[Score], PPOTrainer], folder: Path) -> Whole:
    trainer = make(lengths)
    key = json.dumps([trainer.settings, str(trainer.machine.dtype)])
    if key not in WHOLE:
        trainer.train(QUERIES, path := folder / "whole.safetensors")
        WHOLE[key] = Whole(trainer, path.read_bytes())
    return WHOLE[key]


def resumed(make: Callable[[Score], PPOTrainer], path: Path) -> PPOTrainer:
    """Goes on from the checkpoint, and must end bit for bit as a training that was never stopped."""
    again = make(lengths)
    again.train(QUERIES, path)
    assert same(again, whole(make, path.parent).trainer)
    return again


def die() -> None:
    raise KeyboardInterrupt


@pytest.mark.slow
@pytest.mark.parametrize("call", [2, 4, 8])  # in the warm-up, after it, in an iteration that is not saved
@pytest.mark.parametrize(
    ("more", "dtype"),
    [
        ({}, torch.float32),
        ({"risk.measure": "cvar_ru", "risk.eta": "running", "risk.eta_rate": 0.5}, torch.float32),
        ({"risk.hard_share": 0.5, "risk.critic": "all"}, torch.float32),
        ({"risk.measure": "cvar_ru", "risk.eta": "running", "risk.eta_rate": 0.5}, torch.bfloat16),
        ({"ppo.averaged": 0.8}, torch.float32),  # of iterations 2 to 6
    ],
    ids=["cvar", "running eta", "hard prompts", "bfloat16", "averaged"],
)
def test_a_training_killed_anywhere_goes_on_to_the_same_bytes(
    call: int, more: dict[str, object], dtype: torch.dtype, make_trainer: Make, tmp_path: Path
) -> None:
    def make(score: Score) -> PPOTrainer:
        trainer = make_trainer(score, **VALUES, **more)
        trainer.machine = replace(trainer.machine, dtype=dtype)
        return trainer

    with pytest.raises(KeyboardInterrupt):
        make(doing(call, die)).train(QUERIES, tmp_path / "killed.safetensors")
    again = resumed(make, tmp_path / "killed.safetensors")
    assert [step for step, _ in again.recorder.rows] == [1, 2, 3, 4, 5, 6]  # those before the kill are told again


def test_the_end_of_the_warm_up_is_saved(make_trainer: Make, tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    with pytest.raises(KeyboardInterrupt):
        make_trainer(doing(4, die), **VALUES | {"ppo.checkpoint_every": 50}).train(QUERIES, path)
    loaded = load_checkpoint(path)
    assert loaded is not None and loaded[1]["iteration"] == 0
    seen: list[int] = []
    again = make_trainer(lambda texts: seen.append(1) or lengths(texts), **VALUES | {"ppo.checkpoint_every": 50})
    again.train(QUERIES, path)
    assert len(seen) == 6  # the warm-up is not done again


def test_a_training_with_several_responses_to_a_query_goes_on_to_the_same_bytes(
    make_trainer: Make, tmp_path: Path
) -> None:
    values = {"ppo.responses": 3, "ppo.baseline": "query", "ppo.averaged": 0.5, "risk.measure": "mean_cvar"}
    with pytest.raises(KeyboardInterrupt):
        make_trainer(doing(6, die), **VALUES, **values).train(QUERIES, tmp_path / "killed.safetensors")
    loaded = load_checkpoint(tmp_path / "killed.safetensors")
    assert loaded is not None and loaded[1]["iteration"] == 4  # no rollout trains the value head first
    resumed(partial(make_trainer, **VALUES, **values), tmp_path / "killed.safetensors")


@pytest.mark.parametrize("part", ["optimizer", "kl_coef", "measure", "average"])
def test_each_part_of_the_checkpoint_matters(part: str, make_trainer: Make, tmp_path: Path) -> None:
    """Negative control."""
    values = VALUES | {"risk.measure": "cvar_ru", "risk.eta": "running", "risk.eta_rate": 0.5, "ppo.averaged": 0.5}
    made = whole(partial(make_trainer, **values), tmp_path)
    path = tmp_path / "c.safetensors"
    path.write_bytes(made.checkpoint)
    loaded = load_checkpoint(path)
    assert loaded is not None
    tensors, state = loaded
    if part == "optimizer":
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("adam/")}
    elif part == "average":
        tensors |= {name: tensor + 1 for name, tensor in tensors.items() if name.startswith("average/")}
    else:
        state |= {"kl_coef": 0.9} if part == "kl_coef" else {"measure": {}}
    save_checkpoint(path, tensors, state)
    again = make_trainer(lengths, **values)
    again.train(QUERIES, path)
    assert not same(again, made.trainer)


class Terminated(BaseException):
    pass


def terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated


@pytest.fixture(params=[signal.SIGINT, signal.SIGTERM])
def raised(request: pytest.FixtureRequest) -> tuple[signal.Signals, type[BaseException]]:
    """A signal, and what its handler raises here."""
    old = signal.signal(signal.SIGTERM, terminate)
    request.addfinalizer(lambda: signal.signal(signal.SIGTERM, old))
    return request.param, KeyboardInterrupt if request.param == signal.SIGINT else Terminated


Raised = tuple[signal.Signals, type[BaseException]]


@pytest.mark.parametrize(("call", "done"), [(1, -3), (2, -2), (4, 0), (6, 2), (9, 5)])
def test_a_signal_in_a_rollout_saves_the_iteration_before_it(
    call: int, done: int, raised: Raised, make_trainer: Make, tmp_path: Path
) -> None:
    number, error = raised
    path = tmp_path / "c.safetensors"
    stopped = make_trainer(doing(call, lambda: signal.raise_signal(number)), **VALUES)
    said: list[str] = []
    stopped.recorder.say = said.append
    with pytest.raises(error):
        stopped.train(QUERIES, path)
    assert said[-1] == f"stopped after iteration {max(done, 0)} of 6; the same command goes on from there"
    loaded = load_checkpoint(path)
    assert loaded is not None and loaded[1]["iteration"] == done
    resumed(partial(make_trainer, **VALUES), path)


@pytest.mark.parametrize("iteration", [3, 6])
def test_a_signal_in_an_update_lets_it_end_and_saves_it(
    iteration: int, raised: Raised, make_trainer: Make, tmp_path: Path
) -> None:
    number, error = raised
    path = tmp_path / "c.safetensors"
    stopped = make_trainer(lengths, **VALUES)
    update = stopped.update

    def interrupted(targets: object, at: int) -> object:
        if at == iteration:
            signal.raise_signal(number)
        return update(targets, at)

    stopped.update = interrupted
    with pytest.raises(error):
        stopped.train(QUERIES, path)
    loaded = load_checkpoint(path)
    assert loaded is not None and loaded[1]["iteration"] == iteration
    resumed(partial(make_trainer, **VALUES), path)


def test_a_second_signal_stops_at_once_and_saves_nothing(raised: Raised, make_trainer: Make, tmp_path: Path) -> None:
    number, error = raised
    path = tmp_path / "c.safetensors"

    def twice() -> None:
        signal.raise_signal(number)
        signal.raise_signal(number)
        pytest.fail("the second signal did nothing")

    with pytest.raises(error):
        make_trainer(doing(9, twice), **VALUES).train(QUERIES, path)
    loaded = load_checkpoint(path)
    assert loaded is not None and loaded[1]["iteration"] == 4  # that of checkpoint_every


def test_the_handlers_are_given_back(raised: Raised) -> None:
    number, _ = raised
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with HeldSignals() as held:
        assert signal.getsignal(number) not in before
        assert held.number is None
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_signal_to_another_process_acts_here_too(raised: Raised) -> None:
    class Two(World):
        def max(self, x: float) -> float:
            return max(x, float(raised[0]))

    with pytest.raises(raised[1]), HeldSignals(Two()) as held:
        assert held.number is None
        assert held.asked()


def test_a_handler_that_returns_does_not_let_a_stopped_training_look_whole() -> None:
    seen: list[int] = []
    old = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    try:
        with pytest.raises(KeyboardInterrupt), HeldSignals():
            signal.raise_signal(signal.SIGTERM)
            assert seen == []
        assert seen == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, old)


def test_an_error_goes_before_a_noted_signal(raised: Raised) -> None:
    with pytest.raises(ZeroDivisionError), HeldSignals():
        signal.raise_signal(raised[0])
        raise ZeroDivisionError


def test_an_ignored_signal_stays_ignored() -> None:
    old = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with HeldSignals() as held:
            signal.raise_signal(signal.SIGTERM)
        assert held.number is None
    finally:
        signal.signal(signal.SIGTERM, old)


def test_a_training_runs_outside_the_main_thread(make_trainer: Make, tmp_path: Path) -> None:
    trainer = make_trainer(lengths, **VALUES)
    thread = threading.Thread(target=trainer.train, args=(QUERIES, tmp_path / "c.safetensors"))
    thread.start()
    thread.join()
    assert len(trainer.records) == 6


@pytest.mark.parametrize(
    ("key", "there", "here"),
    [("ppo.lr", 0.003, 0.001), ("kl.target", 2.0, 3.0), ("risk.alpha", 0.5, 0.25), ("ppo.iterations", 6, 7)],
)
def test_a_checkpoint_of_other_params_is_refused(
    key: str, there: object, here: object, make_trainer: Make, tmp_path: Path
) -> None:
    path = tmp_path / "c.safetensors"
    before = whole(partial(make_trainer, **VALUES), tmp_path).checkpoint
    path.write_bytes(before)
    text = f"{path} is the checkpoint of another training: {key} = {there} there, {here} here. Give the values "
    with pytest.raises(UserError, match=re.escape(text)):
        make_trainer(**VALUES | {key: here}).train(QUERIES, path)
    assert path.read_bytes() == before


def test_a_checkpoint_of_another_seed_query_precision_or_model_is_refused(make_trainer: Make, tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    path.write_bytes(whole(partial(make_trainer, **VALUES), tmp_path).checkpoint)
    with pytest.raises(UserError, match="another training: seed = 1 there, 2 here. Give"):
        make_trainer(seed=2, **VALUES).train(QUERIES, path)
    with pytest.raises(UserError, match=r"queries = 14 queries \(\w+\) there, 13 queries \(\w+\) here. Give"):
        make_trainer(**VALUES).train(QUERIES[:-1], path)
    with pytest.raises(UserError, match=r"queries = 14 queries \(\w+\) there, 14 queries \(\w+\) here. Give"):
        make_trainer(**VALUES).train(QUERIES[::-1], path)
    loaded = load_checkpoint(path)
    assert loaded is not None
    tensors, state = loaded
    model = state["settings"]["model"]
    assert re.fullmatch(r"\d+ weights \(\w{8}\)", model)
    state["settings"] |= {"model": "7 weights (0)", "runtime.precision": "torch.bfloat16"}
    save_checkpoint(path, tensors, state)
    text = f"model = 7 weights (0) there, {model} here; runtime.precision = torch.bfloat16 there, torch.float32 here."
    with pytest.raises(UserError, match=re.escape(text)):
        make_trainer(**VALUES).train(QUERIES, path)
    save_checkpoint(path, tensors, state | {"settings": {}})
    with pytest.raises(UserError, match=r"ppo.iterations = nothing there, 6 here; .*; and \d+ more. Give"):
        make_trainer(**VALUES).train(QUERIES, path)


def test_the_settings_outlive_json(make_trainer: Make) -> None:
    settings = make_trainer().settings
    assert json.loads(json.dumps(settings)) == settings
    assert {"ppo.lr", "ppo.value_clip", "kl.coef", "risk.measure", "seed", "model"} <= set(settings)


def test_weights_that_are_not_finite_stop_and_keep_the_checkpoint(make_trainer: Make, tmp_path: Path) -> None:
    """The loss of the last step is finite, the weights after it are not."""
    path = tmp_path / "c.safetensors"
    trainer = make_trainer(**VALUES)
    update = trainer.update

    def overflowing(targets: object, iteration: int) -> object:
        stats = update(targets, iteration)
        if iteration == 4:
            with torch.no_grad():
                trainer.policy.lm.transformer.wpe.weight[0, 0] = torch.nan
        return stats

    trainer.update = overflowing
    with pytest.raises(UserError, match="iteration 4: weights are not finite.*lower ppo.lr .*last checkpoint is kept"):
        trainer.train(QUERIES, path)
    loaded = load_checkpoint(path)
    assert loaded is not None and loaded[1]["iteration"] == 2
    assert all(tensor.isfinite().all() for tensor in loaded[0].values())


def test_weights_too_large_for_a_distribution_stop(make_trainer: Make, tmp_path: Path) -> None:
    trainer = make_trainer(**VALUES)
    with torch.no_grad():
        trainer.policy.lm.transformer.wte.weight.fill_(3e38)  # finite, and its products are not
    with pytest.raises(UserError, match="iteration -2: the model's logits are not finite.*lower ppo.lr"):
        trainer.train(QUERIES, tmp_path / "c.safetensors")
