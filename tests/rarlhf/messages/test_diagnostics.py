"""Troubles of PPO are named once, with their numbers; a sound record says nothing."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from rarlhf.config.params import Params
from rarlhf.messages.diagnostics import TROUBLES, Watch
from rarlhf.messages.progress import SilentRecorder
from rarlhf.rl.ppo import PPOTrainer

KL = {"target": 2.0, "stop_above": 5.0}  # a limit of 10 nats, and a warning above 5
SOUND = {
    "objective/kl": 1.5,
    "objective/return_std": 0.7,
    "policy/skipped_steps": 0.0,
    "policy/ratio_max": 1.9,
    "response/empty": 0.02,
}


# Of each trouble: what shows it, the beginning of its line, and the least that shows it.
CASES: dict[str, tuple[dict[str, float], str, dict[str, float]]] = {
    "negative KL": (
        {"objective/kl": -2.25},
        "negative KL: the mean log-ratio to the reference policy is -2.25 nats",
        {"objective/kl": -0.501},
    ),
    "high KL": (
        {"objective/kl": 7.25},
        "high KL: 7.25 nats for kl.target = 2.0. The training stops",
        {"objective/kl": 5.01},
    ),
    "skipped step": (
        {"policy/skipped_steps": 3.0},
        "3 optimiser steps left out: their mean probability ratio",
        {"policy/skipped_steps": 1.0},
    ),
    "ratio spike": (
        {"policy/ratio_max": 41.7},
        "ratio spike: a token's probability rose 42 times",
        {"policy/ratio_max": 10.01},
    ),
    "empty responses": (
        {"response/empty": 0.25},
        "empty responses: 25% hold nothing but the end of text",
        {"response/empty": 0.101},
    ),
    "equal returns": (
        {"objective/return_std": 0.0},
        "all episodes have the same return",
        {"objective/return_std": 0.0},
    ),
}


@pytest.mark.parametrize("trouble", sorted({*TROUBLES, *CASES}))  # a new one without a case fails
def test_each_trouble_is_named_once(trouble: str, params: Params) -> None:
    edit, start, least = CASES[trouble]
    watch = Watch(params.ppo, params.kl.model_copy(update=KL))
    assert watch.warnings(SOUND) == []
    (text,) = watch.warnings(SOUND | edit)
    assert text.startswith(start)
    assert watch.said == {trouble}
    assert watch.warnings(SOUND | edit) == []
    assert len(Watch(params.ppo, params.kl.model_copy(update=KL)).warnings(SOUND | least)) == 1


def test_what_is_just_tolerable_is_not_named(params: Params) -> None:
    edge = {"objective/kl": -0.5, "objective/return_std": 1e-6, "policy/ratio_max": 10.0, "response/empty": 0.1}
    assert Watch(params.ppo, params.kl.model_copy(update=KL)).warnings(SOUND | edge) == []
    assert Watch(params.ppo, params.kl.model_copy(update=KL)).warnings(SOUND | {"objective/kl": 5.0}) == []


def test_a_training_that_is_never_stopped_is_not_said_to_stop(params: Params) -> None:
    never = params.kl.model_copy(update={"stop_above": None})
    assert Watch(params.ppo, never).warnings(SOUND | {"objective/kl": 389.0}) == []


class Listener(SilentRecorder):
    """Keeps the lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def test_the_trainer_names_the_iteration_and_a_resumed_one_does_not_say_it_again(
    make_trainer: Callable[..., PPOTrainer], tmp_path: Path
) -> None:
    first, path = make_trainer(**{"kl.coef": 0.0, "ppo.checkpoint_every": 2}), tmp_path / "checkpoint.safetensors"
    first.score = lambda texts: torch.zeros(len(texts))
    first.recorder = Listener()
    first.train([[5], [6, 7], [8]] * 2, path)
    (line,) = (line for line in first.recorder.lines if "same return" in line)
    assert line.startswith("iteration 1: all episodes have the same return")
    resumed = make_trainer(**{"kl.coef": 0.0, "ppo.checkpoint_every": 2})
    resumed.score, resumed.recorder = first.score, Listener()
    resumed.train([[5], [6, 7], [8]] * 2, path)
    assert resumed.recorder.lines == ["going on after iteration 2 of 4"]
