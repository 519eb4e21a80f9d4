"""PPOTrainer's pieces: the first ratio, selection, micro-batches, the KL that is controlled."""

import math
from dataclasses import replace
from fractions import Fraction
from statistics import mean, stdev

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rarlhf.models.episodes import Episodes, chunks
from rarlhf.risk.hard_prompts import HardPrompts
from rarlhf.risk.measures.base import Batch, Treatment
from rarlhf.risk.schedule import RiskLevel
from rarlhf.rl.metrics import of_rollout
from rarlhf.rl.ppo import PPOTrainer
from rarlhf.rl.rollout import Rollout, Targets
from tests.rarlhf.rl.by_hand import (
    LOG_RATIOS,
    QUERIES,
    SCORES,
    STATS,
    Make,
    capture,
    rollout_by_hand,
    same,
    targets_of,
    weights,
)

END = 0  # the tokenizer's end of text


def test_the_first_ratio_of_each_iteration_is_one(make_trainer: Make) -> None:
    trainer = make_trainer()
    for iteration in (1, 2):
        rollout = trainer.collect_rollout(QUERIES[:6], iteration)
        lengths = rollout.episodes.response_mask.sum(dim=1)
        assert len(set(lengths.tolist())) > 1  # unlike lengths, so that padding is at stake
        targets = targets_of(trainer, rollout)
        _, part = trainer.losses(targets, int(lengths.sum()))
        policy, _, clipped, approx_kl, ratio, ratio_max = part.tolist()
        assert ratio == pytest.approx(1.0, abs=1e-6)
        assert ratio_max == pytest.approx(1.0, abs=1e-6)
        assert approx_kl == pytest.approx(0.0, abs=1e-6)
        assert clipped == 0
        assert policy == pytest.approx(0.0, abs=1e-6)  # minus the mean of whitened advantages
        trainer.step(rollout, iteration)
    trainer.policy.sampling = trainer.policy.sampling._replace(temperature=1.2)  # negative control
    _, part = trainer.losses(targets, int(lengths.sum()))
    assert abs(float(part[4]) - 1.0) > 0.01


def gradient(trainer: PPOTrainer, targets: Targets) -> Tensor:
    trainer.optimizer_step(targets, 1)
    return torch.cat([p.grad.flatten() for p in trainer.policy.parameters() if p.grad is not None])


def test_micro_batches_change_nothing_and_a_wrong_normalisation_does(make_trainer: Make) -> None:
    whole = make_trainer(**{"ppo.micro_batch_size": 6})
    targets = targets_of(whole, whole.collect_rollout(QUERIES[:6], 1))
    cut = make_trainer(**{"ppo.micro_batch_size": 2})
    wrong = make_trainer(**{"ppo.micro_batch_size": 2})
    expected = gradient(whole, targets)
    size = float(expected.abs().max())
    # sums over 30 tokens in float32 taken in another order
    torch.testing.assert_close(gradient(cut, targets), expected, atol=1e-5 * size, rtol=1e-3)
    for rows in chunks(torch.arange(6), 2):  # the mean of micro-batch means: short responses count too much
        part = targets.rows(rows)
        loss, _ = wrong.losses(part, int(part.episodes.response_mask.sum()))
        (loss / 3).backward()
    mean_of_means = torch.cat([p.grad.flatten() for p in wrong.policy.parameters() if p.grad is not None])
    assert float((mean_of_means - expected).abs().max()) > 0.01 * size


def test_the_worst_are_kept_in_batch_order_and_whitened_alone(
    make_trainer: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(**{"kl.coef": 0.0, "ppo.gae_lambda": 1.0})
    caught = capture(trainer, monkeypatch)
    rollout = rollout_by_hand([3.0, -1.0, 2.0, -5.0, 0.0, -1.0])
    trainer.step(rollout, iteration=4)  # alpha .5 of 6: the 3 lowest returns, episodes 3, 1 and 5
    (targets,) = caught
    kept = [1, 3, 5]
    assert torch.equal(targets.episodes.responses, rollout.episodes.responses[kept])
    assert torch.equal(targets.episodes.response_mask, rollout.episodes.response_mask[kept])
    # critic 0 and lambda 1: every token's advantage is its episode's return; 2, 1 and 3 real tokens
    tokens = [-1.0, -1.0, -5.0, -1.0, -1.0, -1.0]
    better, worse = ((x - mean(tokens)) / stdev(tokens) for x in (-1.0, -5.0))
    expected = torch.tensor([[better, better, 0.0], [worse, 0.0, 0.0], [better] * 3])
    torch.testing.assert_close(targets.advantages, expected)


def test_all_are_kept_during_the_warmup(make_trainer: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer()
    caught = capture(trainer, monkeypatch)
    record = trainer.step(rollout_by_hand([3.0, -1.0, 2.0, -5.0, 0.0, -1.0]), iteration=1)
    assert len(caught[0].logprobs) == record["risk/kept"] == 6


def test_the_value_by_which_episodes_are_ranked(make_trainer: Make) -> None:
    rewards = torch.tensor([[1.0, 2.0, 0.0], [3.0, 0.0, 0.0]] * 3)
    rollout = rollout_by_hand([0.0] * 6)
    values = torch.tensor([[5.0, 1.0, 1.0]] * 6)
    rollout = Rollout(rollout.episodes, values, values, values, values, rollout.scores)
    # lambda .5, episodes of two tokens: delta 1 + 1 - 5 = -3 and 2 - 1 = 1, so A = -3 + .5 = -2.5 and A + V = 2.5;
    # with rewards 3, 0: deltas -1 and -1, A = -1.5, 3.5. Of one token (rows 3 and 4): the first reward alone.
    lambda_return = [2.5, 3.5, 1.0, 3.0]
    expected = {"episode_return": [3.0, 3.0, 3.0, 3.0], "lambda_return": lambda_return, "value": [5.0] * 4}
    for name, ranking in expected.items():
        trainer = make_trainer(**{"risk.ranking": name, "ppo.gae_lambda": 0.5})
        assert trainer.ranking(rewards, rollout, 1).tolist()[:4] == ranking


def test_a_random_ranking_is_a_function_of_seed_and_iteration(make_trainer: Make) -> None:
    rewards, rollout = torch.zeros(6, 3), rollout_by_hand([0.0] * 6)
    one, other = (make_trainer(seed=seed, **{"risk.ranking": "random"}) for seed in (1, 2))
    first = one.ranking(rewards, rollout, 1)
    assert torch.equal(first, one.ranking(rewards + 5.0, rollout_by_hand([9.0] * 6), 1))
    for another in (one.ranking(rewards, rollout, 2), other.ranking(rewards, rollout, 1)):
        assert not set(first.tolist()) & set(another.tolist())


@pytest.mark.parametrize("measure", ["cvar_ru", "mean_cvar"])
def test_of_the_score_every_episode_pays_its_own_kl(
    measure: str, make_trainer: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    edits = {"risk.measure": measure, "risk.of": "score", "risk.mix": 0.25, "ppo.gae_lambda": 1.0, "kl.coef": 0.5}
    trainer = make_trainer(**edits)
    caught = capture(trainer, monkeypatch)
    record = trainer.step(rollout_by_hand(SCORES, LOG_RATIOS), iteration=4)
    # scores 3, -1, 2, -5, 0, -1 at alpha .5: eta is -1, u = -1 for all but -5, of which 4 below eta count twice
    utility = {"cvar_ru": [-1.0, -1.0, -1.0, -9.0, -1.0, -1.0]}
    utility["mean_cvar"] = [0.75 * s + 0.25 * u for s, u in zip(SCORES, utility["cvar_ru"], strict=True)]
    # critic 0, lambda and gamma 1: a token's target is the utility less half of the log-ratios from it on
    kl_to_go = torch.tensor([[1.5, 1, 0], [2, 0, 0], [3, 0, 0], [4, 0, 0], [-1, 0, 0], [0, -1, 0]])
    mask = rollout_by_hand(SCORES).episodes.response_mask
    expected = torch.where(mask, torch.tensor(utility[measure]).unsqueeze(1) - 0.5 * kl_to_go, 0.0)
    torch.testing.assert_close(caught[0].returns, expected)
    tail, mean_score = (-5 - 1 - 1) / 3, -2 / 6
    assert record["risk/objective"] == pytest.approx(tail if measure == "cvar_ru" else 0.75 * mean_score + 0.25 * tail)


def test_dropped_episodes_may_pay_the_kl(make_trainer: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    edits = {"risk.measure": "cvar", "kl.coef": 0.5, "ppo.gamma": 0.5, "ppo.gae_lambda": 1.0}
    free, paying = (make_trainer(**edits, **{"risk.dropped": dropped}) for dropped in ("free", "pay_kl"))
    caught_free, caught_paying = capture(free, monkeypatch), capture(paying, monkeypatch)
    rollout = rollout_by_hand(SCORES, LOG_RATIOS)
    records = [trainer.step(rollout, iteration=4) for trainer in (free, paying)]
    (only,), (whole,) = caught_free, caught_paying
    # returns 2.25, -2, .5, -7, .5, -1: the lowest three are episodes 1, 3 and 5
    kept = torch.tensor([False, True, False, True, False, True])
    assert torch.equal(whole.kept, kept)
    assert only.kept.all()
    assert records[0]["risk/kept"] == records[1]["risk/kept"] == 3
    torch.testing.assert_close(whole.advantages[kept], only.advantages)
    # episodes 0, 2 and 4: -.5 (.5 + .5 x 1) = -.5 and -.5; -1.5; .5, 0, 0: mean -2 / 6
    to_go = torch.tensor([[-0.5, -0.5, 0.0], [-1.5, 0.0, 0.0], [0.5, 0.0, 0.0]])
    mask = rollout.episodes.response_mask
    # kept tokens to go: -1 + .5 (-1) = -1.5 and -1; -7; of 1, -1, 0: 0, .5 and -1 discounted: 0 - .5 + .25 - .25 = -.5
    # and .5 - .5 = 0, -1
    deviation = stdev([-1.0 + 0.5 * -1.0, -1.0, -7.0, -0.5 + 0.5 * (0.5 - 0.5), 0.0, -1.0])
    torch.testing.assert_close(whole.advantages[~kept], torch.where(mask[~kept], (to_go + 2 / 6) / deviation, 0.0))


@pytest.mark.parametrize(
    ("average", "expected"),
    # summed log-ratios of the six: 1, 2, 3, 4, -1, 0; the kept ones have 2, 4 and 0
    [("all", 9 / 6), ("kept", 6 / 3), ("kept_over_batch", 6 / 6)],
)
def test_whose_kl_moves_the_coefficient(
    average: str, expected: float, make_trainer: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    # with a target of 1.8, 9/6 and 6/6 are below and 6/3 above: errors -1/6, 1/9 and -.44 (clipped to -.2)
    trainer = make_trainer(**{"kl.coef": 0.5, "kl.target": 1.8, "kl.rate": 0.1, "kl.average": average})
    capture(trainer, monkeypatch)
    ratios = [[0.5, 0.5, 9.0], [2.0, 0.0, 9.0], [3.0, 9.0, 9.0], [4.0, 9.0, 9.0], [-1.0, 0.0, 0.0], [1.0, -1.0, 0.0]]
    record = trainer.step(rollout_by_hand([9.0, -9.0, 9.0, -9.0, 9.0, -9.0], ratios), iteration=4)  # 9.0 is padding
    assert record["objective/kl"] == pytest.approx(9 / 6)
    assert record["objective/kl_controlled"] == pytest.approx(expected)
    assert record["objective/kl_coef"] == 0.5  # the one that was used; the next iteration has the moved one
    error = {"all": -1 / 6, "kept": 1 / 9, "kept_over_batch": -0.2}[average]
    assert trainer.kl_coef == pytest.approx(0.5 * (1 + 0.1 * error))


def test_a_measure_is_shown_the_iterations_own_coefficient_ranking_weights_and_progress(
    make_trainer: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(**{"kl.coef": 0.5, "risk.ranking": "value"})
    capture(trainer, monkeypatch)
    shown: list[tuple[Batch, RiskLevel]] = []
    treat = trainer.measure.treat

    def seen(batch: Batch, level: RiskLevel) -> Treatment:
        shown.append((batch, level))
        return treat(batch, level)

    monkeypatch.setattr(trainer.measure, "treat", seen)
    trainer.kl_coef = 0.25  # as the controller has moved it
    values = torch.arange(18.0).view(6, 3)
    rollout = replace(rollout_by_hand(SCORES, LOG_RATIOS), values=values, weights=(Fraction(1, 2),) * 6)
    trainer.step(rollout, iteration=3)
    ((batch, level),) = shown
    assert batch.kl_coef == 0.25
    assert batch.returns[:2].tolist() == [-0.125 + 3 - 0.25, -0.5 - 1.0]
    assert batch.scores is rollout.scores
    assert torch.equal(batch.response_mask, rollout.episodes.response_mask)
    assert batch.ranking.tolist() == [0.0, 3.0, 6.0, 9.0, 12.0, 15.0]
    assert batch.weights is rollout.weights
    assert level == (Fraction(2, 3), Fraction(2, 3))  # n = 1 and J = 4: (3 - 1) / (4 - 1); 1 - .5 x 2 / 3


def test_each_epoch_takes_the_kept_in_an_order_of_its_own(make_trainer: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def orders(iteration: int, seed: int = 1) -> list[list[float]]:
        trainer = make_trainer(seed=seed, **{"ppo.epochs": 3, "ppo.mini_batch_size": 4})
        taken: list[float] = []
        noted = monkeypatch.setattr
        noted(trainer, "optimizer_step", lambda batch, _: taken.extend(batch.returns[:, 0].tolist()) or STATS)
        numbered = torch.arange(6.0).unsqueeze(1).expand(6, 3)
        trainer.update(targets_of(trainer, rollout_by_hand(SCORES))._replace(returns=numbered), iteration)
        return [taken[start : start + 6] for start in (0, 6, 12)]

    seen = orders(1) + orders(2) + orders(1, seed=2)
    assert all(sorted(order) == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0] for order in seen)
    assert len({tuple(order) for order in seen}) == 9
    assert orders(1) == seen[:3]  # a resumed run takes the same


def test_policy_and_value_head_move_at_their_own_rates(make_trainer: Make) -> None:
    trainer = make_trainer(**{"ppo.lr": 0.003, "ppo.value_lr": 0.05})
    before = weights(trainer)
    trainer.optimizer_step(targets_of(trainer, trainer.collect_rollout(QUERIES[:6], 1)), 1)
    # Adam's first step is the rate times the gradient's sign
    moved = {name: float((value - before[name]).abs().max()) for name, value in weights(trainer).items()}
    assert moved["value_head.weight"] == pytest.approx(0.05, rel=1e-3)
    assert moved["value_head.bias"] == pytest.approx(0.05, rel=1e-3)
    assert moved["lm.transformer.wte.weight"] == pytest.approx(0.003, rel=1e-3)


WEIGHTS = tuple(map(Fraction, range(6)))


def test_hard_prompts_are_drawn_and_weighed_at_the_iterations_level(
    make_trainer: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(**{"risk.hard_share": 0.5})
    hard, asked = HardPrompts(QUERIES, 0.5, seed=1), []
    rollout = replace(rollout_by_hand(SCORES), values=torch.arange(18.0).view(6, 3))

    def mix(batch: object, index: int, level: Fraction, value_of: object) -> tuple[object, float]:
        asked.append((index, level))
        return batch, 7.0

    def weigh(values: Tensor, threshold: float, level: Fraction) -> tuple[Fraction, ...]:
        asked.append((values.tolist(), threshold, level))
        return WEIGHTS

    monkeypatch.setattr(hard, "mix", mix)
    monkeypatch.setattr(hard, "weights", weigh)
    monkeypatch.setattr(trainer, "collect_rollout", lambda batch, iteration: rollout)
    # alpha .5, n = 1 and J = 4: 1 - .5 (m - 1) / 3
    for iteration, level in ((1, 1), (2, Fraction(5, 6)), (3, Fraction(2, 3)), (4, Fraction(1, 2))):
        mixed = trainer.collect_hard_rollout(hard, QUERIES[:6], iteration)
        assert asked == [(iteration, level), ([0.0, 3.0, 6.0, 9.0, 12.0, 15.0], 7.0, level)]
        assert mixed.weights == WEIGHTS
        asked.clear()


def test_a_step_whose_mean_ratio_is_too_large_is_left_out(make_trainer: Make) -> None:
    trainer = make_trainer(**{"ppo.max_ratio": 3.0})
    targets = targets_of(trainer, trainer.collect_rollout(QUERIES[:6], 1))
    before = weights(trainer)
    far = targets._replace(logprobs=targets.logprobs - math.log(4.0))  # every ratio is 4
    stats = trainer.optimizer_step(far, 1)
    assert stats.skipped == 1
    assert stats.ratio_max == pytest.approx(4.0, rel=1e-4)
    assert stats.clip_fraction == 1
    assert same(before, weights(trainer))
    assert trainer.optimizer_step(targets._replace(logprobs=targets.logprobs - math.log(2.0)), 1).skipped == 0
    assert not same(before, weights(trainer))


def test_a_gradient_is_clipped_where_asked(make_trainer: Make) -> None:
    sizes = []
    for limit in (None, 1e-3):
        trainer = make_trainer(**{"ppo.max_grad_norm": limit})
        sizes.append(float(gradient(trainer, targets_of(trainer, trainer.collect_rollout(QUERIES[:6], 1))).norm()))
    assert sizes[0] > 0.01
    assert sizes[1] == pytest.approx(1e-3, rel=1e-3)


def test_the_score_sees_query_and_response_without_special_tokens(
    make_trainer: Make, tokenizer: PreTrainedTokenizerBase
) -> None:
    ids = tokenizer("we saw the film .")["input_ids"]
    end = tokenizer.eos_token_id
    pad = [end] * 2
    split = 3
    episodes = Episodes(
        torch.tensor([pad + ids[:split]]),
        torch.tensor([[False] * 2 + [True] * split]),
        torch.tensor([[*ids[split:], end, end]]),
        torch.tensor([[True] * (len(ids) - split) + [True, False]]),
    )
    assert make_trainer().texts(episodes) == ["we saw the film ."]


def test_terminated_is_the_end_of_text_and_not_the_length_limit() -> None:
    tokens = torch.tensor([[END, 0, 0], [1, 2, END], [1, 2, 3], [1, END, END], [END, 4, END]])
    lengths = torch.tensor([1, 3, 3, 1, 0])
    queries = torch.ones(5, 1, dtype=torch.int64)
    episodes = Episodes(queries, queries.bool(), tokens, torch.arange(3) < lengths.unsqueeze(1))
    zeros = torch.zeros(5, 3)
    record = of_rollout(Rollout(episodes, zeros, zeros, zeros, zeros, torch.zeros(5)), END)
    assert record["response/terminated"] == pytest.approx(2 / 5)  # the fourth's END is padding
    assert record["response/empty"] == pytest.approx(1 / 5)
