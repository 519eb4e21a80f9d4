"""PPOTrainer's critic: whose targets it learns, its clip, and its warm-up."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.rarlhf.rl.by_hand import (
    LOG_RATIOS,
    QUERIES,
    SCORES,
    Make,
    capture,
    fitted,
    rollout_by_hand,
    targets_of,
    weights,
)


def test_dropped_episodes_do_not_train_the_critic(make_trainer: Make) -> None:
    trainer = make_trainer(**{"risk.dropped": "pay_kl"})
    rollout = trainer.collect_rollout(QUERIES[:6], 1)
    targets = targets_of(trainer, rollout)
    gradients = []
    for kept, returns in ((True, 0.0), (False, 0.0), (False, 9.0)):
        some = targets.kept.clone()
        some[2:] = kept
        changed = targets.returns.clone()
        changed[2:] += returns
        trainer.optimizer.zero_grad()
        trainer.losses(targets._replace(kept=some, returns=changed), tokens=10)[0].backward()
        gradients.append(trainer.policy.value_head.weight.grad.clone())
    whole, part, moved = gradients
    assert not torch.allclose(whole, part)
    assert torch.equal(part, moved)  # their targets are not read


@pytest.mark.parametrize("critic", ["kept", "all"])
def test_the_critic_learns_the_returns_that_the_measure_made(
    critic: str, make_trainer: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(**{"risk.measure": "cvar_ru", "risk.critic": critic, "ppo.gae_lambda": 1.0})
    caught, alone = capture(trainer, monkeypatch), fitted(trainer, monkeypatch)
    trainer.step(rollout_by_hand(SCORES), iteration=4)
    # critic 0, lambda and gamma 1: each token's target is its episode's utility. Half of the six are -5, -1, -1: eta is
    # -1; -5 is 4 below, which counts twice; beta .2 is gained by all and paid twice by those at or below eta
    utility = torch.tensor([-0.8, -1.2, -0.8, -9.2, -0.8, -1.2])
    expected = torch.where(rollout_by_hand(SCORES).episodes.response_mask, utility.unsqueeze(1), 0.0)
    torch.testing.assert_close(caught[0].returns, expected)
    best, _, _, worst, *_ = caught[0].advantages[:, 0].tolist()
    assert (best / worst == pytest.approx(0.8 / 9.2)) == (critic == "all")  # whitening shifts them if it centres
    assert len(alone) == (critic == "all")
    for returns in alone:
        torch.testing.assert_close(returns, expected)


@pytest.mark.parametrize("alone", [True, False])
def test_a_value_that_moves_beyond_its_clip_gains_nothing(alone: bool, make_trainer: Make) -> None:
    """The values at sampling lie 10 below, the targets 5 above: squares of 5, and of 14.9 where the clip stops."""
    for clip, moves in ((0.1, False), (None, True)):
        trainer = make_trainer(**{"ppo.value_clip": clip, "ppo.value_lr": 0.05})
        rollout = trainer.collect_rollout(QUERIES[:6], 1)
        before, far = weights(trainer), replace(rollout, values=rollout.values - 10.0)
        if alone:
            trainer.fit_value_head(far, rollout.values + 5.0)
        else:
            targets = targets_of(trainer, far)
            trainer.optimizer_step(targets._replace(returns=rollout.values + 5.0), 1)
        after = weights(trainer)
        assert torch.equal(before["value_head.bias"], after["value_head.bias"]) is not moves


def test_the_value_warmup_moves_the_value_head_alone(make_trainer: Make, tmp_path: Path) -> None:
    trainer = make_trainer(**{"ppo.value_lr": 0.05})
    before = weights(trainer)
    rollout = trainer.collect_rollout(QUERIES[:6], 0)
    trainer.warm_up_value(rollout)
    after = weights(trainer)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"value_head.weight", "value_head.bias"}
    assert trainer.records == []
    records = make_trainer(**{"ppo.value_warmup": 2}).train(QUERIES, tmp_path / "c.safetensors")
    assert [record["iteration"] for record in records] == [1, 2, 3, 4]
    assert records[0]["objective/kl"] == pytest.approx(0.0, abs=1e-5)


def test_the_value_warmup_is_towards_returns_with_the_kl_penalty(
    make_trainer: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(**{"kl.coef": 0.5, "ppo.gae_lambda": 1.0, "ppo.gamma": 0.5})
    alone = fitted(trainer, monkeypatch)
    trainer.warm_up_value(replace(rollout_by_hand(SCORES, LOG_RATIOS), values=torch.full((6, 3), 7.0)))
    (returns,) = alone
    # lambda 1, whatever the critic: the rewards -.25 and 3 - .5, -1 and -1 - 0, 2 - 1.5, those to come counted half
    assert returns[:3].tolist() == [[1.0, 2.5, 0.0], [-1.5, -1.0, 0.0], [0.5, 0.0, 0.0]]


def test_the_value_warmup_fits_the_returns(make_trainer: Make) -> None:
    trainer = make_trainer(**{"ppo.value_lr": 0.05, "kl.coef": 0.0})
    rollout = trainer.collect_rollout(QUERIES[:6], 0)
    mask = rollout.episodes.response_mask
    errors = []
    for _ in range(2):
        values = trainer.rollout(rollout.episodes, rollout.scores).values
        errors.append(float((values - rollout.scores.unsqueeze(1))[mask].square().mean()))  # gamma 1: return = score
        for _ in range(20):
            trainer.warm_up_value(trainer.rollout(rollout.episodes, rollout.scores))
    assert errors[1] < 0.5 * errors[0]
