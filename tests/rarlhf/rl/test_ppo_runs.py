"""Whole runs of PPOTrainer: exact reductions, determinism, and what stops one.

Resuming is in test_resume.py, alpha = 1 of every measure in test_trajectories.py.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rarlhf.config.errors import UserError
from rarlhf.rl.checkpoint import load_checkpoint
from rarlhf.rl.ppo import PPOTrainer

QUERIES = [[5 + i] * (1 + i % 3) for i in range(14)]
Make = Callable[..., PPOTrainer]


def weights(trainer: PPOTrainer) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in trainer.policy.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Bit for bit."""
    return all(torch.equal(one[name], other[name]) for name in one)


def test_the_reference_starts_equal_and_stays_while_the_policy_moves(make_trainer: Make, tmp_path: Path) -> None:
    trainer = make_trainer()
    with trainer.ref_policy() as lm:
        reference = {name: value.clone() for name, value in lm.state_dict().items()}
    assert same(reference, trainer.policy.lm.state_dict())
    records = trainer.train(QUERIES, tmp_path / "c.safetensors")
    with trainer.ref_policy() as lm:
        assert same(reference, lm.state_dict())
    assert not same(reference, trainer.policy.lm.state_dict())
    assert records[0]["objective/kl"] == pytest.approx(0.0, abs=1e-5)
    assert abs(records[-1]["objective/kl"]) > 1e-3


def test_the_level_of_an_unused_measure_decides_nothing(make_trainer: Make, tmp_path: Path) -> None:
    one = make_trainer(**{"risk.measure": "none", "risk.alpha": 0.5, "risk.ranking": "value"})
    other = make_trainer(**{"risk.measure": "none", "risk.alpha": 0.2, "risk.warmup": 3})
    assert one.train(QUERIES, tmp_path / "1.safetensors") == other.train(QUERIES, tmp_path / "2.safetensors")
    assert same(weights(one), weights(other))


def test_each_query_is_answered_several_times_with_its_own_numbers(make_trainer: Make, tmp_path: Path) -> None:
    trainer, seen = make_trainer(**{"ppo.responses": 3}), []
    collect = trainer.collect_rollout

    def collected(queries: Sequence[list[int]], iteration: int) -> object:
        rollout = collect(queries, iteration)
        episodes = rollout.episodes
        rows = [q[m].tolist() for q, m in zip(episodes.queries, episodes.query_mask, strict=True)]
        assert rows == [query for query in queries for _ in range(3)]
        assert len({tuple(row) for row in episodes.responses.tolist()}) > 2  # two queries: they differ within one
        seen.extend(map(tuple, queries))
        return rollout

    trainer.collect_rollout = collected
    trainer.train(QUERIES, tmp_path / "c.safetensors")
    assert len(seen) == 8 == len(set(seen))  # 4 batches of 6 / 3 queries, each drawn once in a pass


def test_with_the_queries_as_baseline_no_critic_is_trained(make_trainer: Make, tmp_path: Path) -> None:
    values = {"ppo.responses": 2, "risk.measure": "none", "ppo.value_warmup": 3}
    calls: list[int] = []

    def score(texts: Sequence[str]) -> Tensor:
        calls.append(len(texts))
        return torch.tensor([float(len(text)) for text in texts])

    trainer, critic = (make_trainer(score, **values, **{"ppo.baseline": name}) for name in ("query", "critic"))
    before = {name: weight.clone() for name, weight in trainer.policy.value_head.named_parameters()}
    records = trainer.train(QUERIES, tmp_path / "q.safetensors")
    assert calls == [6] * 4  # and no rollout that trains the value head first
    assert all(torch.equal(weight, before[name]) for name, weight in trainer.policy.value_head.named_parameters())
    assert {record["value/loss"] for record in records} == {0.0}
    critic.train(QUERIES, tmp_path / "c.safetensors")
    assert not torch.equal(critic.policy.value_head.weight, before["weight"])  # negative control


def test_without_a_kl_coefficient_the_return_is_the_score(make_trainer: Make, tmp_path: Path) -> None:
    free = make_trainer(**{"kl.coef": 0.0}).train(QUERIES, tmp_path / "1.safetensors")
    for record in free:
        assert record["objective/return_mean"] == pytest.approx(record["objective/score_mean"], abs=1e-5)
        assert record["objective/kl_coef"] == 0
    held = make_trainer(**{"kl.coef": 0.5}).train(QUERIES, tmp_path / "2.safetensors")[-1]
    expected = held["objective/score_mean"] - held["objective/kl_coef"] * held["objective/kl"]
    assert held["objective/return_mean"] == pytest.approx(expected, abs=1e-5)
    assert abs(held["objective/return_mean"] - held["objective/score_mean"]) > 1e-3


def test_equal_seeds_give_equal_bytes_and_others_others(make_trainer: Make, tmp_path: Path) -> None:
    runs = [make_trainer(seed=seed) for seed in (1, 1, 2)]
    records = [trainer.train(QUERIES, tmp_path / f"{i}.safetensors") for i, trainer in enumerate(runs)]
    assert records[0] == records[1]
    assert same(weights(runs[0]), weights(runs[1]))
    assert records[0][0]["objective/score_mean"] != records[2][0]["objective/score_mean"]
    assert not same(weights(runs[0]), weights(runs[2]))


def test_the_kept_count_follows_the_schedule(make_trainer: Make, tmp_path: Path) -> None:
    trainer = make_trainer(
        **{
            "ppo.batch_size": 10,
            "ppo.mini_batch_size": 5,
            "ppo.micro_batch_size": 5,
            "ppo.iterations": 12,
            "ppo.epochs": 1,
            "ppo.max_new_tokens": 2,
            "risk.alpha": 0.4,
            "risk.warmup": 2,
            "risk.rho": 0.95,
        }
    )
    records = trainer.train(QUERIES, tmp_path / "c.safetensors")
    # J = ceil(.95 x 12) = 12, K = .6 / 10; m = 3: ceil(10 x .94) = 10, m = 4: ceil(8.8) = 9, ..., m = 11: ceil(4.6) = 5
    assert [record["risk/kept"] for record in records] == [10, 10, 10, 9, 9, 8, 7, 7, 6, 6, 5, 4]
    assert records[3]["risk/alpha"] == pytest.approx(0.88)


def lengths(texts: Sequence[str]) -> Tensor:
    return torch.tensor([float(len(text)) for text in texts])


def failing(calls: int, error: Exception | None = None) -> Callable[[Sequence[str]], Tensor]:
    """A score that, at call `calls`, raises the error or else gives infinity."""
    seen = 0

    def score(texts: Sequence[str]) -> Tensor:
        nonlocal seen
        seen += 1
        if seen < calls:
            return lengths(texts)
        if error is not None:
            raise error
        return torch.full((len(texts),), torch.inf)

    return score


def test_a_loss_that_is_not_finite_stops_and_keeps_the_checkpoint(make_trainer: Make, tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    trainer = make_trainer(failing(4), **{"ppo.iterations": 6, "ppo.checkpoint_every": 2})
    with pytest.raises(UserError, match="iteration 4: the loss is not finite .* The last checkpoint is kept"):
        trainer.train(QUERIES, path)
    loaded = load_checkpoint(path)
    assert loaded is not None
    tensors, state = loaded
    assert state["iteration"] == 2
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())


def test_times_go_to_the_recorder_and_not_into_the_records(make_trainer: Make, tmp_path: Path) -> None:
    trainer = make_trainer()
    records = trainer.train(QUERIES, tmp_path / "c.safetensors")
    rows = trainer.recorder.rows
    assert [step for step, _ in rows] == [record["iteration"] for record in records] == [1, 2, 3, 4]
    times = {"time/decode", "time/score", "time/policy", "time/reference", "time/update"}
    assert set(rows[0][1]) == set(records[0]) | times
    assert not times & set(records[0])
