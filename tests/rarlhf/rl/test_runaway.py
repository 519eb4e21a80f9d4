"""A training whose KL runs away: it stops with one line, and its last good checkpoint stays."""

from collections.abc import Callable
from pathlib import Path

import pytest

from rarlhf.config.errors import UserError
from rarlhf.config.params import KLParams, Params
from rarlhf.rl.checkpoint import load_checkpoint
from rarlhf.rl.ppo import PPOTrainer
from rarlhf.rl.runaway import PATIENCE, iterations_beyond, stop_runaway

QUERIES = [[5 + i] * (1 + i % 3) for i in range(14)]
Make = Callable[..., PPOTrainer]
# A rate that no penalty holds: the policy leaves the reference within a few iterations.
HUGE = {"ppo.lr": 0.3, "ppo.iterations": 30, "ppo.checkpoint_every": 1, "kl.target": 0.05, "kl.stop_above": 8.0}


@pytest.fixture
def kl(params: Params) -> KLParams:
    """A limit of 10 nats."""
    return params.kl.model_copy(update={"target": 2.0, "stop_above": 5.0, "controller": "paper"})


def records(kls: list[float]) -> list[dict[str, float]]:
    return [{"iteration": number, "objective/kl": kl} for number, kl in enumerate(kls, start=1)]


@pytest.mark.parametrize(
    ("kls", "beyond"), [([], 0), ([11.0], 1), ([11.0, 10.0], 0), ([3.0, 12.0, 9.0, 11.0, 10.1], 2), ([11.0] * 7, 7)]
)
def test_iterations_beyond_the_limit_are_counted_from_the_end(kls: list[float], beyond: int, kl: KLParams) -> None:
    assert iterations_beyond(records(kls), kl) == beyond
    assert iterations_beyond(records(kls), kl.model_copy(update={"stop_above": None})) == 0


def test_a_training_goes_on_within_its_patience(kl: KLParams) -> None:
    outliers = [1.0, *[400.0] * (PATIENCE - 1)]
    stop_runaway(records(outliers), kl, 80, None)
    stop_runaway(records([*outliers, 10.0]), kl, 80, None)
    stop_runaway(records([*[400.0] * 9, 10.0]), kl, 10, None)  # the last iteration, within the limit


def test_the_line_says_what_happened_and_what_to_do(kl: KLParams) -> None:
    kls = records([1.0, *[148.25] * PATIENCE])
    with pytest.raises(UserError) as stopped:
        stop_runaway(kls, kl, 80, (1, Path("c.safetensors")))
    assert str(stopped.value) == (
        "iteration 6: the policy has run away: its KL is 148.2 nats, and has been above 10 (kl.stop_above = 5 times "
        "kl.target = 2) for 5 iterations in a row. Lower ppo.lr or raise kl.coef, or set kl.controller: pid. The "
        "checkpoint of iteration 1 is kept (c.safetensors); to start over with other settings, delete it"
    )
    with pytest.raises(UserError, match=r"raise kl\.coef\. No checkpoint was written before$"):
        stop_runaway(kls, kl.model_copy(update={"controller": "pid"}), 80, None)


def test_the_last_iteration_may_not_be_beyond(kl: KLParams) -> None:
    with pytest.raises(UserError, match="iteration 3: .* above 10 .* for one iteration"):
        stop_runaway(records([1.0, 9.0, 10.5]), kl, 3, None)


@pytest.mark.parametrize("controller", ["paper", "pid"])
def test_a_runaway_stops_and_its_last_good_checkpoint_stays(
    controller: str, make_trainer: Make, tmp_path: Path
) -> None:
    path = tmp_path / "c.safetensors"
    trainer = make_trainer(**HUGE | {"kl.controller": controller})
    said: list[str] = []
    trainer.recorder.say = said.append
    with pytest.raises(UserError, match="the policy has run away") as stopped:
        trainer.train(QUERIES, path)
    last = len(trainer.records)
    assert PATIENCE < last < 30
    assert all(record["objective/kl"] > 0.4 for record in trainer.records[-PATIENCE:])
    loaded = load_checkpoint(path)
    assert loaded is not None
    good = loaded[1]["iteration"]
    assert good == last - PATIENCE  # one was due after every iteration since
    assert f"The checkpoint of iteration {good} is kept" in str(stopped.value)
    assert loaded[1]["records"][-1]["objective/kl"] <= 0.4
    (warning,) = (line for line in said if "high KL" in line)
    assert int(warning.split(":")[0].removeprefix("iteration ")) < last
    with pytest.raises(UserError, match=r"ppo\.lr = 0\.3 there, 0\.003 here.*or delete it to start over"):
        make_trainer(**HUGE | {"kl.controller": controller, "ppo.lr": 0.003}).train(QUERIES, path)
    with pytest.raises(UserError) as again:  # the same settings end in the same way
        make_trainer(**HUGE | {"kl.controller": controller}).train(QUERIES, path)
    assert str(again.value) == str(stopped.value)


def test_without_a_limit_the_same_training_ends(make_trainer: Make, tmp_path: Path) -> None:
    """Negative control."""
    trainer = make_trainer(**HUGE | {"kl.stop_above": None, "ppo.iterations": 12})
    assert trainer.train(QUERIES, tmp_path / "c.safetensors")[-1]["objective/kl"] > 0.4
