"""PPOTrainer's optimiser steps: their numbers by hand, the value head alone, the schedule, the times."""

from collections.abc import Callable
from fractions import Fraction
from itertools import chain

import pytest
import torch
from torch import Tensor

import rarlhf.rl.collect
from rarlhf.rl.ppo import PPOTrainer
from rarlhf.rl.rollout import Rollout, Targets, select
from tests.rarlhf.small import parts

QUERIES = [[5 + i] * (1 + i % 3) for i in range(6)]
Make = Callable[..., PPOTrainer]


def measured(trainer: PPOTrainer) -> tuple[Rollout, Targets]:
    """A rollout, and all its episodes as targets with advantages of 1."""
    rollout = trainer.collect_rollout(QUERIES, 1)
    mask = rollout.episodes.response_mask
    targets = select(rollout, rollout.values, rollout.values + 1.0, torch.ones(len(mask), dtype=torch.bool))
    return rollout, targets._replace(advantages=mask.float())


def with_ratios(targets: Targets, ratios: Tensor) -> Targets:
    """The probability at sampling such that its ratio to the present one is as given, (B, T)."""
    return targets._replace(logprobs=targets.logprobs - ratios.log())


def test_the_numbers_of_a_step_by_hand(make_trainer: Make) -> None:
    trainer = make_trainer(**{"ppo.clip": 0.2})
    _, targets = measured(trainer)
    mask = targets.episodes.response_mask
    assert not mask.all()  # padding, whose ratio is 1
    ratios = torch.full(mask.shape, 0.9)
    ratios[:, 0] = 0.5  # every response has a first token; of these the ratio is below the clip range
    _, part = trainer.losses(with_ratios(targets, ratios), int(mask.sum()))
    policy, value, clipped, approx_kl, ratio, ratio_max = part.tolist()
    first = 6 / int(mask.sum())  # share of such tokens
    assert policy == pytest.approx(-(first * 0.5 + (1 - first) * 0.9), rel=1e-5)  # advantages 1: not clipped from below
    assert value == pytest.approx(0.5, rel=1e-5)  # half of 1 squared
    assert clipped == pytest.approx(first)
    # r - 1 - log r: .5 - 1 + .693147 and .9 - 1 + .105361
    assert approx_kl == pytest.approx(first * 0.193147 + (1 - first) * 0.005361, rel=1e-3)
    assert ratio == pytest.approx(first * 0.5 + (1 - first) * 0.9, rel=1e-5)
    assert ratio_max == pytest.approx(0.9, rel=1e-5)


@pytest.mark.parametrize(("critic", "coefficient"), [("kept", 0.25), ("all", 0.0)])
def test_the_loss_holds_the_values_unless_they_are_fitted_apart(
    critic: str, coefficient: float, make_trainer: Make
) -> None:
    trainer = make_trainer(**{"ppo.value_coef": 0.25, "risk.critic": critic})
    _, targets = measured(trainer)
    loss, part = trainer.losses(targets, int(targets.episodes.response_mask.sum()))
    # advantages 1 at ratio 1, and half of 1 squared
    assert part[:2].tolist() == pytest.approx([-1.0, 0.5], rel=1e-5)
    assert float(loss.detach()) == pytest.approx(-1.0 + coefficient * 0.5, rel=1e-5)


def test_a_single_large_ratio_does_not_leave_a_step_out(make_trainer: Make) -> None:
    trainer = make_trainer(**{"ppo.max_ratio": 10.0})
    _, targets = measured(trainer)
    ratios = torch.ones(targets.logprobs.shape)
    ratios[0, 0] = 20.0  # of at least six tokens: a mean of at most 25 / 6
    stats = trainer.optimizer_step(with_ratios(targets, ratios), 1)
    assert stats.ratio_max == pytest.approx(20.0, rel=1e-4)
    assert stats.skipped == 0


def test_the_value_head_alone_takes_a_step_an_epoch(make_trainer: Make) -> None:
    trainer = make_trainer(**{"ppo.epochs": 3, "ppo.value_lr": 0.01})
    rollout, _ = measured(trainer)
    before = trainer.policy.value_head.bias.detach().clone()
    trainer.fit_value_head(rollout, rollout.values + 50.0)
    # far below its target the gradient hardly changes, and Adam's steps are each of the rate's size
    assert float(trainer.policy.value_head.bias.detach() - before) == pytest.approx(0.03, rel=0.01)


def test_padding_teaches_the_value_head_nothing(make_trainer: Make) -> None:
    heads = []
    for on_padding in (0.0, 100.0):
        trainer = make_trainer()
        rollout, _ = measured(trainer)
        trainer.fit_value_head(rollout, torch.where(rollout.episodes.response_mask, 1.0, on_padding))
        heads.append(trainer.policy.value_head.weight.detach())
    assert torch.equal(*heads)


def test_no_layer_drops_anything_out(make_trainer: Make) -> None:
    """Whatever the state of the policy that is handed in: log-probabilities are compared between passes."""
    made = make_trainer()
    made.policy.train()
    trainer = PPOTrainer(*parts(made))
    assert not any(module.training for module in trainer.policy.modules())


@pytest.mark.parametrize(("count_from", "thirds"), [(1, [0, 1, 2, 3]), (0, [0, 0, 1, 2])])
def test_progress_counts_from_where_it_is_told(count_from: int, thirds: list[int], make_trainer: Make) -> None:
    # M 4, n 1, rho 1: J = 4
    trainer = make_trainer(**{"risk.count_from": count_from})
    assert [trainer.schedule.at(m).progress for m in (1, 2, 3, 4)] == [Fraction(k, 3) for k in thirds]


def test_the_share_rho_is_the_number_as_it_is_written(make_trainer: Make) -> None:
    trainer = make_trainer(**{"ppo.iterations": 25, "risk.rho": 0.28})
    # J = ceil(.28 x 25) = 7, though .28 is a little more in binary; n = 1
    assert [trainer.schedule.at(m).progress for m in (2, 6, 7)] == [Fraction(1, 6), Fraction(5, 6), 1]


def test_the_seconds_of_a_phase_are_added_up_and_belong_to_one_iteration(
    make_trainer: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer()
    record = trainer.step(trainer.collect_rollout(QUERIES, 1), 1)
    clock = chain.from_iterable(((0.0, 1.0), (10.0, 12.0), (20.0, 20.5)))
    monkeypatch.setattr(rarlhf.rl.collect.time, "perf_counter", lambda: next(clock))
    for _ in range(2):
        with trainer.timed("decode"):
            pass
    trainer.keep(record)
    with trainer.timed("decode"):
        pass
    trainer.keep(record)
    trainer.keep(record)
    assert [row.get("time/decode") for _, row in trainer.recorder.rows[1:]] == [3.0, 0.5, None]
