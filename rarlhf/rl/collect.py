"""Collects rollouts: samples responses to queries, scores them, and measures them under the policy and the reference.

Letters for shapes: B episodes, N queries. `rarlhf.rl.ppo` trains on what comes out.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from rarlhf.config.errors import UserError
from rarlhf.data.queries import episode_texts
from rarlhf.decoding.compiled import CompiledSteps
from rarlhf.decoding.prompts import left_pad
from rarlhf.decoding.sampling import Decoding, sample_batches, uniform_numbers
from rarlhf.models.episodes import Episodes, Measured, chunks, joined
from rarlhf.models.policy import response_logprobs, response_states
from rarlhf.models.sharding import shard_policy, shard_reference, whole
from rarlhf.risk.hard_prompts import HardPrompts
from rarlhf.risk.schedule import RiskSchedule
from rarlhf.rl.parts import Models, Recipe, Session
from rarlhf.rl.rollout import Rollout, gathered

DIVERGED = "lower ppo.lr or ppo.value_lr, or raise kl.coef. The last checkpoint is kept"


class Collector:
    """What a trainer does before it learns: rollouts of the policy it is given, as this policy is now."""

    def __init__(self, models: Models, recipe: Recipe, session: Session) -> None:
        self.policy = models.policy.eval()  # without dropout: log-probabilities are compared between passes
        self.ref_policy = models.ref_policy
        self.tokenizer, self.plain_prompts, self.score = models.tokenizer, models.plain_prompts, models.score
        self.ppo, self.seed = recipe.ppo, recipe.seed
        self.schedule = RiskSchedule(recipe.risk, recipe.ppo.iterations)
        self.machine, self.world = session.machine, session.world
        if self.machine.sharded:
            self._shard()
        self.compiled = CompiledSteps(self.policy.lm) if self.machine.compiled else None
        self.seconds: dict[str, float] = {}  # spent in each phase since the last record

    def _shard(self) -> None:
        if self.world.size == 1:
            raise UserError(
                "runtime.sharding = 'full': this is a single process, which has nobody to divide the weights with; "
                "start several by a launcher such as accelerate launch (docs/scale.md), or set none"
            )
        shard_policy(self.policy)
        self.ref_policy = shard_reference(self.ref_policy)

    def collect_rollout(self, queries: Sequence[list[int]], iteration: int) -> Rollout:
        """Samples, scores and measures `ppo.responses` responses to each query.

        Args:
            queries: lists of token ids, B / `ppo.responses` of them.
            iteration: names the random stream, so that a resumed run draws the same tokens.
        """
        with self.timed("decode"):
            episodes, measured = self._decode(queries, iteration)
        with self.timed("score"):
            scores = self.score(self.texts(episodes)).to(self.machine.device)
        return self.rollout(episodes, scores, measured)

    def collect_hard_rollout(self, hard: HardPrompts, batch: list[list[int]], iteration: int) -> Rollout:
        """A rollout in which hard prompts replace `risk.hard_share` of the batch; a plain one where that is 0."""
        level = self.schedule.at(iteration).alpha
        batch, threshold = hard.mix(batch, iteration, level, self.query_values)
        rollout = self.collect_rollout(batch, iteration)
        if threshold == -torch.inf:
            return rollout
        return replace(rollout, weights=hard.weights(rollout.values[:, 0], threshold, level))

    @torch.no_grad()
    def query_values(self, queries: Sequence[list[int]]) -> Tensor:
        """(N,) float32, the critic's value of bare queries: that of the first response token."""
        prompts = left_pad(queries, self.policy.sampling.end_id, self.machine.device)
        nothing = torch.full((len(queries), 1), self.policy.sampling.end_id, device=self.machine.device)
        episodes = Episodes(*prompts, nothing, torch.ones_like(nothing, dtype=torch.bool))
        with self.timed("candidates"), self.machine.autocast(), whole(self.policy):
            states = [response_states(self.policy.lm, part) for part in self._micro_batches(episodes)]
        return self.policy.values_of(torch.cat(states))[:, 0]

    def generate(self, queries: Sequence[list[int]], iteration: int) -> Episodes:
        """`ppo.responses` responses to each query, one after another; each of several processes gives its share.

        Raises: UserError if logits are not finite.
        """
        return self._decode(queries, iteration)[0]

    @torch.no_grad()
    def _decode(self, queries: Sequence[list[int]], iteration: int) -> tuple[Episodes, Measured | None]:
        """Episodes, and what was measured as they were drawn if `rollout_logprobs` is `decode`."""
        queries = [query for query in queries for _ in range(self.ppo.responses)]
        prompts = left_pad(queries, self.policy.sampling.end_id, self.machine.device)
        (numbers,) = uniform_numbers(("rollout", self.seed, iteration), (len(queries), self.ppo.max_new_tokens))
        uniforms, ours = numbers.to(self.machine.device), self.world.share(len(queries))
        measuring = self.policy if self.ppo.rollout_logprobs == "decode" else None
        decoding = Decoding(self.policy.lm, self.policy.sampling, compiled=self.compiled)
        try:
            with self.machine.autocast(), whole(self.policy):
                return sample_batches(
                    decoding, prompts.rows(ours), uniforms[ours], self.ppo.decode_batch_size, measuring
                )
        except UserError as error:
            raise UserError(f"iteration {iteration}: {error}; {DIVERGED}") from error

    def texts(self, episodes: Episodes) -> list[str]:
        """Text of each query with its response: what the score sees."""
        return episode_texts(episodes, self.tokenizer, self.plain_prompts)

    @torch.no_grad()
    def rollout(self, episodes: Episodes, scores: Tensor, measured: Measured | None = None) -> Rollout:
        """Measures episodes with scores (B,) and joins the processes' shares; `measured` is what decoding has kept."""
        with self.timed("policy"), self.machine.autocast():
            if measured is None:
                with whole(self.policy):
                    measured = joined([self.policy.measure(part) for part in self._micro_batches(episodes)])
        with self.timed("reference"), self.machine.autocast(), self.ref_policy() as lm:
            reference = [response_logprobs(lm, part, self.policy.sampling) for part in self._micro_batches(episodes)]
        ours = Rollout(episodes, measured.logprobs, torch.cat(reference), measured.values, measured.entropy, scores)
        return gathered(self.world.gather(ours), self.policy.sampling.end_id)

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Adds the seconds spent inside to the record's `time/PHASE`."""
        start = time.perf_counter()
        yield
        if self.machine.device.type == "cuda":
            torch.cuda.synchronize()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - start

    def _micro_batches(self, episodes: Episodes) -> Iterator[Episodes]:
        for rows in chunks(torch.arange(len(episodes.queries)), self.ppo.micro_batch):
            yield episodes.rows(rows)
