"""PPO with a soft risk schedule: RA-RLHF, and plain RLHF as its risk-neutral case.

One iteration m = 1..M (paper, Algorithm 1; equation numbers are the paper's, arXiv 2501.06911):

1. How risk-averse now: the level of the soft-risk schedule, for the paper's measure B' = ceil(alpha' B).
2. Collect a rollout: B episodes, `ppo.responses` to each query, their score, log-probabilities and values.
3. Token rewards: minus the KL penalty, plus the score at the last real token (Eq. 5).
4. The risk measure: the paper's keeps the B' episodes with the lowest return, others turn returns, or scores, into
   utilities.
5. Advantages and value targets by GAE, or advantages over the query's other responses (`ppo.baseline: query`).
6. Whiten the advantages over the kept tokens and run the PPO epochs on the kept episodes alone (Eqs. 7, 11).
7. Move the KL coefficient (Eq. 6), record, and save a checkpoint now and then.

`train` is the loop and collects the rollouts (rarlhf/rl/collect.py); `step` does the rest. The comments in both carry
these numbers.

Hard selection with whitening over the kept episodes is a biased gradient of the tail: kept advantages are centred, so
the better of two bad episodes is reinforced. This is the paper's method; docs/algorithm.md has the counterexample and
the alternatives (`risk.critic: all`, the other measures).

Letters for shapes: B episodes, Q query tokens, T response tokens, V vocabulary.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rarlhf.config.counts import warmup_rollouts
from rarlhf.config.errors import UserError
from rarlhf.data.batches import query_batch
from rarlhf.messages.diagnostics import Watch
from rarlhf.messages.progress import Update, progress, short
from rarlhf.models.episodes import chunks
from rarlhf.models.policy import response_states
from rarlhf.models.sharding import clip_gradients, held_whole, whole
from rarlhf.risk.hard_prompts import HardPrompts
from rarlhf.risk.measures import risk_measure
from rarlhf.risk.measures.base import Batch, Treatment
from rarlhf.rl import metrics
from rarlhf.rl.advantages import (
    gae,
    penalty_to_go,
    query_advantages,
    risk_rewards,
    token_rewards,
    utility_of_score,
    whitening,
)
from rarlhf.rl.average import WeightAverage
from rarlhf.rl.checkpoint import Loaded, load_training, trained, training_tensors
from rarlhf.rl.collect import DIVERGED, Collector
from rarlhf.rl.identity import described, settings_of
from rarlhf.rl.kl import controlled_kl, next_kl_coef
from rarlhf.rl.losses import policy_loss, value_loss
from rarlhf.rl.parts import Models, Recipe, Session
from rarlhf.rl.rollout import Rollout, Targets, UpdateStats, combined, select, with_dropped
from rarlhf.rl.runaway import iterations_beyond, stop_runaway
from rarlhf.rl.together import load_together, save_together
from rarlhf.system.signals import HeldSignals
from rarlhf.system.streams import generator


class PPOTrainer(Collector):
    """Trains a policy against a score under a KL penalty, on all episodes or on the worst ones.

    Everything is an argument; the trainer loads nothing. `train` runs all iterations with checkpoints; `generate`,
    `rollout` and `step` are the same pieces for your own loop.
    """

    def __init__(self, models: Models, recipe: Recipe, session: Session) -> None:
        """Raises: UserError if there are more processes than episodes in a batch."""
        super().__init__(models, recipe, session)
        policy, ppo, kl = self.policy, recipe.ppo, recipe.kl
        self.kl, self.risk, self.recorder = kl, recipe.risk, session.recorder
        self.measure = risk_measure(recipe.risk)
        self.watch = Watch(ppo, kl)
        if ppo.batch_size < self.world.size:
            raise UserError(f"ppo.batch_size = {ppo.batch_size}: fewer episodes than the {self.world.size} processes")
        self.settings: dict[str, object] = settings_of(
            {"ppo": ppo, "kl": kl, "risk": recipe.risk}, recipe.seed, self.machine, policy
        )
        self.settings["processes"] = self.world.size
        self.average = WeightAverage(policy, ppo.averaged, ppo.iterations)
        self.kl_coef = kl.coef
        self.records: list[dict[str, float]] = []
        self.saved: tuple[int, Path] | None = None  # iteration and path of the last checkpoint
        self.optimizer = torch.optim.Adam(
            [
                {"params": [p for p in policy.lm.parameters() if p.requires_grad], "lr": ppo.lr},
                {"params": list(policy.value_head.parameters()), "lr": ppo.value_lr},
            ],
            fused=True,
        )

    def train(self, queries: Sequence[list[int]], checkpoint: Path) -> list[dict[str, float]]:
        """Runs the value warm-up and all iterations, starting from `checkpoint` if it exists.

        SIGINT and SIGTERM take effect at the end of the current rollout or iteration, after a checkpoint; a second
        signal takes effect at once.

        Args:
            queries: token ids of the training queries, at least those of a batch.
            checkpoint: file written every `ppo.checkpoint_every` iterations and at the end of the warm-up, except
                while the KL is beyond its limit.
        Returns: one record per iteration.
        Raises: UserError if the checkpoint is of another training or cannot be written, or if the training diverges
            or runs away.
        """
        self.settings["queries"] = described(queries)
        first, last = 1 - warmup_rollouts(self.ppo), self.ppo.iterations
        restored = self.restore(checkpoint)
        done = first - 1 if restored is None else restored
        hard = HardPrompts(queries, self.risk.hard_share, self.seed)
        with HeldSignals(self.world) as held, progress("iteration", last) as show:
            while done < last and not held.asked():
                iteration = done + 1
                batch = query_batch(queries, iteration - first, self.ppo.queries, self.seed)
                rollout = self.collect_hard_rollout(hard, batch, iteration)  # 2. at the level of step 1
                if held.asked():
                    break
                self.learn(rollout, iteration, show)  # 1. and 3. to 7., in `step`
                self.average.add(iteration)
                done = iteration
                stop_runaway(self.records, self.kl, last, self.saved)
                if done % self.ppo.checkpoint_every == 0 and done < last:
                    self.save(checkpoint, done)
            if held.asked():
                self.save(checkpoint, done)
                where = f"iteration {max(done, 0)} of {last}"
                on = "there" if self.saved == (done, checkpoint) else "its last checkpoint: KL is above its limit"
                self.recorder.say(f"stopped after {where}; the same command goes on from {on}")
        self.average.apply()
        return self.records

    def learn(self, rollout: Rollout, iteration: int, show: Update) -> None:
        """The update of an iteration, or of the value head alone in the warm-up (iterations up to 0).

        Raises: UserError if a weight is no longer finite.
        """
        if iteration < 1:
            self.warm_up_value(rollout)
        else:
            show(iteration, short(self.step(rollout, iteration)))
        totals = torch.stack([weight.detach().sum() for _, weight in trained(self.policy)])
        if self.world.max(float(not totals.isfinite().all())):
            raise UserError(f"iteration {iteration}: weights are not finite, though the losses were; {DIVERGED}")

    def step(self, rollout: Rollout, iteration: int) -> dict[str, float]:
        """One iteration's update from a rollout; returns its record.

        Args:
            rollout: B episodes sampled from the current policy.
            iteration: m in 1..M, which sets the risk level.
        """
        mask = rollout.episodes.response_mask
        level = self.schedule.at(iteration)  # 1. how risk-averse now
        rewards = token_rewards(rollout.scores, rollout.log_ratio, mask, self.kl_coef)  # 3. score minus KL penalty
        batch = self.risk_batch(rewards, rollout, iteration)
        treated = self.measure.treat(batch, level)  # 4. kept episodes and utilities
        placed = self.treated_rewards(rewards, treated, rollout)
        advantages, returns = self.advantages(placed, rollout, treated.kept)  # 5. and value targets
        targets = self.targets(rollout, advantages, returns, treated.kept)  # 6. whitened, then PPO epochs
        stats = self.update(targets, iteration)
        if self.risk.critic == "all":
            self.fit_value_head(rollout, returns)
        kl = controlled_kl(rollout.log_ratio.sum(dim=1), treated.kept, self.kl.average)  # 7. record, move beta
        record = metrics.of_risk(self.measure, level, batch, treated) | metrics.of_update(stats)
        record |= metrics.of_rollout(rollout, self.policy.sampling.end_id)
        record |= metrics.of_baseline(self.baseline(rollout, advantages, returns), returns, mask)
        record |= metrics.of_returns(batch.returns) | {"objective/kl_controlled": kl, "objective/kl_coef": self.kl_coef}
        if metrics.is_shown(iteration, self.ppo.iterations):
            metrics.show_samples(self.recorder, iteration, rollout, treated.kept, self.tokenizer)
        kept = self.keep({"iteration": iteration} | dict(sorted(record.items())))
        readings = [before["objective/kl_controlled"] for before in self.records]
        self.kl_coef = next_kl_coef(self.kl_coef, readings, self.kl)
        return kept

    def risk_batch(self, rewards: Tensor, rollout: Rollout, iteration: int) -> Batch:
        """What the risk measure sees of a rollout with token rewards (B, T)."""
        mask, ranking = rollout.episodes.response_mask, self.ranking(rewards, rollout, iteration)
        scores, returns = rollout.scores, rewards.sum(dim=1)
        values, kl_coef = (scores, 0.0) if self.measure.of_score else (returns, self.kl_coef)
        return Batch(scores, returns, values, mask, ranking, kl_coef, rollout.weights)

    def treated_rewards(self, rewards: Tensor, treated: Treatment, rollout: Rollout) -> Tensor:
        """(B, T) token rewards with the measure's utilities; of the score, with every token's own KL penalty."""
        mask = rollout.episodes.response_mask
        if not self.measure.of_score:
            return risk_rewards(rewards, treated, mask)
        return token_rewards(utility_of_score(rollout.scores, treated), rollout.log_ratio, mask, self.kl_coef)

    def targets(self, rollout: Rollout, advantages: Tensor, returns: Tensor, kept: Tensor) -> Targets:
        """What the epochs train on: the episodes `kept` (B,), and the dropped ones if they pay the KL penalty."""
        if self.risk.dropped == "free" or kept.all():
            return select(rollout, advantages, returns, kept, self.centred)
        mask = rollout.episodes.response_mask
        whitened, scale = whitening(advantages, mask & kept.unsqueeze(1), self.centred)
        penalty = penalty_to_go(rollout.log_ratio, mask, self.kl_coef, self.ppo.gamma)
        return with_dropped(rollout, whitened, returns, kept, scale * penalty)

    def ranking(self, rewards: Tensor, rollout: Rollout, iteration: int) -> Tensor:
        """(B,) the value by which episodes are ranked.

        It is the paper's return, the code's lambda-return, the critic's value of the prompt, or drawn at random.
        """
        if self.risk.ranking == "random":
            numbers = torch.rand(len(rewards), generator=generator("ranking", self.seed, iteration))
            return numbers.to(rewards.device)
        if self.risk.ranking == "episode_return":
            return rewards.sum(dim=1)
        if self.risk.ranking == "value":
            return rollout.values[:, 0]
        return self.gae(rewards, rollout)[1][:, 0]

    def advantages(self, rewards: Tensor, rollout: Rollout, kept: Tensor) -> tuple[Tensor, Tensor]:
        """Advantages and what they are measured from, value targets or rewards to go; (B, T) each."""
        if self.ppo.baseline == "critic":
            return self.gae(rewards, rollout)
        return query_advantages(rewards, rollout.episodes.response_mask, self.ppo.gamma, self.ppo.responses, kept)

    def baseline(self, rollout: Rollout, advantages: Tensor, returns: Tensor) -> Tensor:
        """(B, T) what was expected of each token: the critic's value, or what the query's other responses got."""
        return rollout.values if self.ppo.baseline == "critic" else returns - advantages

    def gae(self, rewards: Tensor, rollout: Rollout) -> tuple[Tensor, Tensor]:
        """Advantages and value targets, (B, T) each, of rewards (B, T) on a rollout's values."""
        mask = rollout.episodes.response_mask
        return gae(rewards, rollout.values, mask, self.ppo.gamma, self.ppo.gae_lambda)

    @property
    def centred(self) -> bool:
        """Whether whitening subtracts the kept mean: not where a critic of the whole batch is the baseline."""
        return self.risk.critic == "kept"

    def keep(self, record: dict[str, float]) -> dict[str, float]:
        """Keeps and reports an iteration's record, warns once of what looks wrong in it, and returns it."""
        self.records.append(record)
        iteration = int(record["iteration"])
        self.recorder.record(iteration, record | {f"time/{name}": s for name, s in self.seconds.items()})
        self.seconds = {}
        for warning in self.watch.warnings(record):
            self.recorder.say(f"iteration {iteration}: {warning}")
        return record

    def update(self, targets: Targets, iteration: int) -> UpdateStats:
        """Runs the PPO epochs over the kept episodes.

        Raises: UserError if a loss is not finite; the last checkpoint stays as it is.
        """
        steps = []
        with self.timed("update"):
            for epoch in range(self.ppo.epochs):
                order = torch.randperm(len(targets.logprobs), generator=generator("order", self.seed, iteration, epoch))
                for rows in chunks(order, self.ppo.mini_batch_size):
                    steps.append(self.optimizer_step(targets.rows(rows), iteration))
            self.optimizer.zero_grad(set_to_none=True)  # rollouts have the room of the gradient
        return combined(steps)

    def optimizer_step(self, batch: Targets, iteration: int) -> UpdateStats:
        """One optimiser step on a mini-batch, its gradient summed over micro-batches."""
        tokens = int(batch.episodes.response_mask.sum())
        self.optimizer.zero_grad(set_to_none=True)
        parts = [torch.zeros(6, device=self.machine.device)]  # for a process that has no row of the batch
        for rows in chunks(self.world.share(len(batch.logprobs)), self.ppo.micro_batch):
            loss, part = self.losses(batch.rows(rows), tokens)
            loss.backward()
            parts.append(part)
        if self.machine.sharded:
            self._keep_step(batch, len(parts) - 1)
        sums = torch.stack(parts)
        policy, value, clipped, approx_kl, ratio = self.world.sum(sums[:, :-1].sum(dim=0)).tolist()
        if not math.isfinite(policy + value):
            raise UserError(
                f"iteration {iteration}: the loss is not finite (policy {policy}, value {value}); {DIVERGED}"
            )
        skipped = ratio > self.ppo.max_ratio
        if not skipped:
            self._apply_gradient()
        ratio_max = self.world.max(float(sums[:, -1].max()))
        return UpdateStats(policy, value, clipped, approx_kl, ratio_max, float(skipped))

    def losses(self, batch: Targets, tokens: int) -> tuple[Tensor, Tensor]:
        """Loss of a micro-batch, and its sums divided by the mini-batch's `tokens`.

        Returns: () loss; (6,) policy loss, value loss, clip fraction, approximate KL, mean ratio, the largest ratio.
        """
        mask = batch.episodes.response_mask
        with self.machine.autocast():
            output = self.policy(batch.episodes)
        log_ratio = torch.where(mask, output.logprobs - batch.logprobs, 0.0)
        ratio = log_ratio.exp()
        policy = policy_loss(ratio, batch.advantages, self.ppo.clip)
        value = torch.zeros_like(policy)
        if self.ppo.baseline == "critic":
            value = value_loss(output.values, batch.values, batch.returns, self.ppo.value_clip)
            value = torch.where(batch.kept.unsqueeze(1), value, 0.0)
        clipped = ((ratio - 1.0).abs() > self.ppo.clip).float()
        per_token = (policy, value, clipped, ratio - 1.0 - log_ratio, ratio)
        sums = torch.stack([torch.where(mask, x, 0.0).sum() / tokens for x in per_token])
        # A critic of the whole batch is fitted separately, by fit_value_head.
        loss = sums[0] + self.ppo.value_coef * sums[1] if self.risk.critic == "kept" else sums[0]
        return loss, torch.cat([sums, ratio[mask].max().unsqueeze(0)]).detach()

    def _keep_step(self, batch: Targets, passes: int) -> None:
        """Passes without effect, until this process has made as many as the one with most rows: weights are divided."""
        most = len(chunks(torch.arange(math.ceil(len(batch.logprobs) / self.world.size)), self.ppo.micro_batch))
        for _ in range(most - passes):
            with self.machine.autocast():
                output = self.policy(batch.episodes.rows(torch.tensor([0])))
            torch.autograd.backward(output, [torch.zeros_like(numbers) for numbers in output])

    def _apply_gradient(self) -> None:
        self.world.sum_gradients(held_whole(self.policy.parameters()))
        if self.ppo.max_grad_norm is not None:
            clip_gradients(self.policy.parameters(), self.ppo.max_grad_norm)
        self.optimizer.step()

    def warm_up_value(self, rollout: Rollout) -> None:
        """Fits the value head alone to all episodes' returns, on detached features; the policy does not move."""
        mask = rollout.episodes.response_mask
        rewards = token_rewards(rollout.scores, rollout.log_ratio, mask, self.kl_coef)
        self.fit_value_head(rollout, self.gae(rewards, rollout)[1])

    def fit_value_head(self, rollout: Rollout, returns: Tensor) -> None:
        """`ppo.epochs` steps of the value head alone towards `returns` (B, T) of all episodes, on detached features."""
        rows, tokens = self.world.share(len(returns)), rollout.episodes.response_mask.sum()
        ours = rollout.episodes.rows(rows)
        with torch.no_grad(), self.machine.autocast(), whole(self.policy):
            parts = [response_states(self.policy.lm, part) for part in self._micro_batches(ours)]
        states = torch.cat(parts).float()
        for _ in range(self.ppo.epochs):
            self.optimizer.zero_grad(set_to_none=True)
            error = value_loss(self.policy.values_of(states), rollout.values[rows], returns[rows], self.ppo.value_clip)
            (torch.where(ours.response_mask, error, 0.0).sum() / tokens).backward()
            self.world.sum_gradients(self.policy.value_head.parameters())
            self.optimizer.step()

    def save(self, path: Path, iteration: int) -> None:
        """Writes what `restore` needs to continue after `iteration` with the same bytes, without frozen weights.

        While the KL is beyond its limit nothing is written, so that the checkpoint from before a runaway stays.
        """
        if iterations_beyond(self.records, self.kl):
            return
        state: dict[str, Any] = {"iteration": iteration, "kl_coef": self.kl_coef, "records": self.records}
        state |= {"measure": self.measure.state, "settings": self.settings}
        tensors = training_tensors(self.policy, self.optimizer) | self.average.tensors()
        save_together(path, tensors, state, self.world, self.machine.sharded)
        self.saved = iteration, path

    def restore(self, path: Path) -> int | None:
        """Restores the checkpoint at `path`; returns its iteration, or None if there is none.

        Raises: UserError if it is of another training or model, naming what differs.
        """
        loaded = load_training(path, self.settings, self.policy, self.optimizer, self._loaded)
        if loaded is None:
            return None
        tensors, state = loaded
        self.average.restore(tensors)
        self.saved = int(state["iteration"]), path
        self.kl_coef, self.records, self.measure.state = state["kl_coef"], state["records"], state["measure"]
        for record in self.records:
            self.recorder.record(int(record["iteration"]), record)
            self.watch.warnings(record)  # they were shown before the interruption
        self.recorder.say(f"going on after iteration {max(state['iteration'], 0)} of {self.ppo.iterations}")
        return int(state["iteration"])

    def _loaded(self, path: Path) -> Loaded | None:
        return load_together(path, self.world, self.machine.sharded)
