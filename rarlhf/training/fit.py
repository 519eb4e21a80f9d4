"""Plan, then fit: weighted likelihood of scored answers, without RL.

The policy that a plan wants is pi*(y|x) = pi_ref(y|x) exp(u(s) / beta) / Z(x) (`rarlhf.risk.plan`). Answers of the SFT
model stand for it, each with the weight w(y|x) that the plan gives it, those of a prompt with a sum of 1. A fit lowers
the cross-entropy

    J = mean over prompts x of the sum over answers y of w(y|x) (-log pi(y|x)),

which is KL(pi* || pi) up to a constant. A model that saw some answers to some prompts does not move as far as the plan
says. So there are rounds (`fit.rounds`):

1. The first fits the answers of the SFT model, with the weights of stage `plan`.
2. Each further one draws `fit.samples` answers to each prompt from the policy so far and measures its KL. The fit is
   done where that is within `NEAR` of the target.
3. Otherwise it weighs the answers of the SFT model and the new ones together, by the plan with another beta, and fits
   these from the policy so far. Beta moves by the factor by which the policy missed the target (`step`). Eta stays: it
   belongs to the policy of the target KL, which the rounds are to reach.

After the last round `fit.calibrated` brings the policy to the target KL (`rarlhf.training.step_length`).

With N answers of the SFT model and M of policy k to each prompt, the answers are those of q = (N pi_ref + M pi_k) /
(N + M). Their importance weights pi_ref / q are at most (N + M) / N, so that none has to be clipped (Hesterberg 1995,
"Weighted average importance sampling and defensive mixture distributions").

Dropout is off, as in PPO: the policy that is fitted is the one that is sampled and measured.

Letters for shapes: P prompts, N answers to each, n answers that are kept, B of a batch, Q query and T response tokens.
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from math import log
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.utils.data import Dataset
from transformers import PreTrainedModel, Trainer, TrainingArguments

from rarlhf.config.errors import UserError
from rarlhf.config.params import Params
from rarlhf.decoding.compatible import refuse_incompatible
from rarlhf.decoding.prompts import Prompts, left_pad
from rarlhf.decoding.samples import Model, Sampler, Samples
from rarlhf.messages.progress import Recorder
from rarlhf.models.backbone import Trainable, load_trainable
from rarlhf.models.episodes import Episodes, chunks
from rarlhf.models.fused import fuse_activations
from rarlhf.models.policy import Sampling, response_logprobs, sampling_of
from rarlhf.models.recompute import recompute_blocks
from rarlhf.rewards.scorers import Score
from rarlhf.risk.plan import Answers, Array, aim_of, effective_samples, planned_weights
from rarlhf.system.machine import Machine
from rarlhf.system.streams import derived_seed
from rarlhf.training.step_length import LONGEST, SHORTEST, Line, find_length, off
from rarlhf.training.supervised import LossCurve, Seat, run_trainer, steps_in, training_options

NEAR = 0.1  # share of kl.target within which a policy's KL counts as there, as `evaluate.like_kl` of the presets
CPU = torch.device("cpu")
LEFT_OUT = 1e-3  # largest sum of a prompt's weights whose answers are not trained on
LARGEST_STEP = 2.0  # factor by which beta changes from round to round at most


class Pool(NamedTuple):
    """Answers that a round learns from, with their weights."""

    responses: Tensor  # (P, N, T) int32
    lengths: Tensor  # (P, N) int32, real tokens
    weights: Array  # (P, N), each row sums to 1


class WeightedAnswers(Dataset[int]):
    """The answers of a pool that are trained on; an example is the index of one, and `batch` joins them.

    A prompt's answers of least weight are left out, as far as their weights' sum is at most `LEFT_OUT`.
    """

    def __init__(self, queries: Prompts, pool: Pool) -> None:
        weights = torch.from_numpy(pool.weights)
        self.kept = kept_answers(weights).flatten().nonzero().squeeze(1)
        self.queries = queries
        self.prompts = self.kept // weights.shape[1]  # (n,) index of the prompt of each answer
        self.responses = pool.responses.flatten(0, 1)[self.kept]
        self.lengths = pool.lengths.flatten()[self.kept].long()
        # J over the mean number of tokens of a planned answer: nats per token, as SFT's loss. The factor n makes the
        # mean over a batch of answers, drawn without regard to their weights, an unbiased estimate of it.
        tokens = (weights * pool.lengths).sum()
        self.weights = (weights.flatten()[self.kept] * len(self.kept) / tokens).float()

    def __len__(self) -> int:
        """Kept answers."""
        return len(self.kept)

    def __getitem__(self, index: int) -> int:
        """The index itself."""
        return index

    def batch(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """The fields of `Episodes`, and the `weights` (B,) of their negative log-likelihoods in the batch's mean."""
        index = torch.tensor(indices)
        answers = batch_of(self.queries.rows(self.prompts[index]), self.responses[index], self.lengths[index])
        return {**answers, "weights": self.weights[index]}


def batch_of(queries: Prompts, responses: Tensor, lengths: Tensor) -> dict[str, Tensor]:
    """The fields of `Episodes`, with responses as wide as the longest of them.

    Args:
        queries: B of them.
        responses: (B, T) of any integer type.
        lengths: (B,) real tokens, int64.
    """
    longest = int(lengths.max())
    return {
        "queries": queries.tokens,
        "query_mask": queries.mask,
        "responses": responses[:, :longest].long(),
        "response_mask": torch.arange(longest) < lengths.unsqueeze(1),
    }


def kept_answers(weights: Tensor) -> Tensor:
    """(P, N) bool: all but the lightest answers of each row, whose weights together are at most `LEFT_OUT`.

    Args:
        weights: (P, N), each row sums to 1.
    """
    ordered, order = weights.sort(dim=1, stable=True)
    heavy = ordered.cumsum(dim=1) > LEFT_OUT
    return torch.zeros_like(heavy).scatter(1, order, heavy)


class FitTrainer(Trainer):
    """transformers' Trainer with the weighted negative log-likelihood of whole responses as the loss."""

    def __init__(self, start: Trainable, sampling: Sampling, machine: Machine, **keywords: Any) -> None:
        super().__init__(start.model, **keywords)
        self.lm, self.sampling, self.machine = start.lm, sampling, machine
        self.model_accepts_loss_kwargs = False  # `compute_loss` gives a mean; the Trainer averages micro-batches

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Mean of weight times negative log-likelihood; of the end of text too, not of queries and padding."""
        model.eval()  # the Trainer has switched dropout on
        episodes = episodes_of(inputs, self.machine.device)
        with self.machine.autocast():
            logprobs = response_logprobs(self.lm, episodes, self.sampling)
        return -(inputs["weights"] * summed(logprobs, episodes.response_mask)).mean()


def episodes_of(batch: Mapping[str, Tensor], device: torch.device) -> Episodes:
    """The episodes of a batch of `WeightedAnswers`, on a device."""
    return Episodes(*(batch[name].to(device) for name in Episodes._fields))


def summed(logprobs: Tensor, response_mask: Tensor) -> Tensor:
    """(B,) sums over the real tokens of (B, T) numbers."""
    return torch.where(response_mask, logprobs, 0.0).sum(dim=1)


class Places(NamedTuple):
    """What a fit reads and writes."""

    sft: Path  # folder of the SFT model or adapter: the start and the reference policy
    out: Path  # where the policy is written, as `from_pretrained` of transformers, or of peft for an adapter, loads it


def fit_policy(
    samples: Samples, plan: Mapping[str, Any], places: Places, score: Score, params: Params, seat: Seat
) -> LossCurve:
    """Fits the SFT model to the plan's weights and writes the policy; returns the curve of all rounds.

    Args:
        samples: P prompts with N answers of the SFT model each.
        plan: `eta` and `kl_coef` of the method's plan on them.
        places: what is read and written.
        score: the reward model; it scores nothing if `fit.rounds` is 1.
        params: all parameters; `risk` is the method's.
        seat: machine, recorder and seed.
    Returns: step, loss (nats per token), lr and round of each logged step.
    Raises: UserError if the samples are not of this model, or no answer has a weight.
    """
    start = load_trainable(places.sft, params.model, seat.seed, seat.machine.device)
    refuse_incompatible(start.lm, start.tokenizer)
    fuse_activations(start.lm)
    if params.model.gradient_checkpointing:
        recompute_blocks(start.lm)
    curve = Fit(start, samples, score, params, seat).rounds(plan)
    start.save(places.out)
    return curve


class Fit:
    """The rounds of one fit."""

    def __init__(self, start: Trainable, samples: Samples, score: Score, params: Params, seat: Seat) -> None:
        """Raises: UserError if the samples are not of this model."""
        self.start, self.samples, self.params = start, samples, params
        self.machine, self.recorder, self.seed = seat
        self.sampling = sampling_of(params, start.tokenizer.eos_token_id)
        refuse_foreign(samples, start.lm, self.sampling)
        self.ref_policy = start.ref_policy()
        self.scoring, self.measuring = (Sampler(of, params, self.machine) for of in (score, unscored))
        self.queries = left_pad([row["input_ids"] for row in samples.prompts], self.sampling.end_id, CPU)
        self.aim = aim_of(params.risk)
        self.line = Line(start.lm) if params.fit.calibrated else None
        self.curve: LossCurve = []
        self.scored = samples.scores.numel()  # answers that were scored so far, those of stage `samples` included

    def rounds(self, plan: Mapping[str, Any]) -> LossCurve:
        """Fits in rounds, beginning with the plan's weights on the SFT model's answers."""
        eta, kl_coef, target = plan["eta"], plan["kl_coef"], self.params.kl.target
        answers = Answers(self.samples.scores.double().numpy())
        self.fit(self.weighed(self.samples, answers, eta, kl_coef), 1)
        for number in range(2, self.params.fit.rounds + 1):
            drawn = self.draw(number)
            kl = mean_log_ratio(drawn)
            if abs(kl - target) <= NEAR * target:
                self.recorder.say(f"{kl:.2f} nats after round {number - 1}, near kl.target = {target:g}: done")
                break
            kl_coef *= step(kl, target)
            self.recorder.say(
                f"{kl:.2f} nats after round {number - 1} for kl.target = {target:g}: beta is {kl_coef:.3g} now"
            )
            pool, answers = self.joined(drawn)
            self.fit(self.weighed(pool, answers, eta, kl_coef), number)
        if self.line is not None:
            self.calibrate(self.line, number=len({row["round"] for row in self.curve}))
        return self.curve

    def calibrate(self, line: Line, number: int) -> None:
        """Lengthens or shortens the step from the SFT model until the KL is the target, after `number` rounds."""
        self.start.lm.zero_grad(set_to_none=True)
        line.through()

        def kl_of(factor: float) -> float:
            line.go(factor)
            title = f"KL at {factor:.2f} of the step"
            return mean_log_ratio(self.answers(self.measuring, title, ("fit", self.seed, "step")))

        target = self.params.kl.target
        length = find_length(kl_of, target)
        line.go(length.factor)
        self.recorder.record(number, {"fit/length": length.factor, "fit/calibrated_kl": length.kl})
        said = f"{length.kl:.2f} nats at {length.factor:.2f} times the step from the SFT model"
        if off(length, target) <= NEAR:
            self.recorder.say(f"{said}, for kl.target = {target:g}")
        else:
            self.recorder.say(
                f"warning: {said} instead of kl.target = {target:g}, and the step stays between {SHORTEST:g} and "
                f"{LONGEST:g} times what was fitted; change fit.lr or fit.epochs, or plan on more answers to a prompt"
            )

    def weighed(self, samples: Samples, answers: Answers, eta: float | None, kl_coef: float) -> Pool:
        """Answers with their weights under the planned policy.

        Raises: UserError if the weights are not finite numbers.
        """
        weights = planned_weights(answers, eta, kl_coef, self.aim)
        if not np.isfinite(weights).all():
            raise UserError(
                f"the plan's weights at beta = {kl_coef:g} are not finite numbers; `dvc repro plan` makes the plan"
            )
        worth = effective_samples(weights)
        self.recorder.say(f"{worth.mean():.1f} effective answers to a prompt of {weights.shape[1]}")
        return Pool(samples.responses, samples.lengths, weights)

    def draw(self, number: int) -> Samples:
        """`fit.samples` answers of the policy so far to each prompt, with their log-ratios."""
        drawn = self.answers(self.scoring, f"sampling {number}", ("fit", self.seed, number))
        self.scored += drawn.scores.numel()
        values = {"kl": mean_log_ratio(drawn), "score_mean": float(drawn.scores.mean()), "scored": float(self.scored)}
        self.recorder.record(number, {f"fit/{name}": value for name, value in values.items()})
        return drawn

    def answers(self, sampler: Sampler, title: str, names: Sequence[object]) -> Samples:
        """`fit.samples` answers of the policy so far to each prompt, from the random stream of these names."""
        model = Model(lambda: nullcontext(self.start.lm), self.start.tokenizer, self.ref_policy)
        return sampler(title, model, self.samples.prompts, self.params.fit.samples, *names)

    def joined(self, drawn: Samples) -> tuple[Samples, Answers]:
        """The SFT model's answers with new ones behind, (P, N + M), and their scores with log importance weights."""
        sets, end_id = (self.samples, drawn), self.sampling.end_id
        width = max(part.responses.shape[2] for part in sets)
        responses = [pad(part.responses, (0, width - part.responses.shape[2]), value=end_id) for part in sets]
        lengths, scores = (torch.cat([getattr(part, name) for part in sets], dim=1) for name in ("lengths", "scores"))
        log_ratios = torch.cat([self.log_ratios(), torch.as_tensor(drawn.log_ratios)], dim=1)
        log_base = log_importance(log_ratios.double().numpy(), *(part.scores.shape[1] for part in sets))
        pool = Samples(torch.cat(responses, dim=1), lengths, scores, self.samples.prompts, log_ratios)
        return pool, Answers(scores.double().numpy(), log_base)

    @torch.no_grad()
    def log_ratios(self) -> Tensor:
        """(P, N) log pi - log pi_ref of the SFT model's answers under the policy so far, nats."""
        shape = self.samples.scores.shape
        everything = WeightedAnswers(self.queries, Pool(*self.samples[:2], np.full(shape, 1 / shape[1])))
        indices = chunks(torch.arange(len(everything)), self.params.plan.batch_size)
        return torch.cat([self._log_ratios(everything.batch(index.tolist())) for index in indices]).view(shape)

    def _log_ratios(self, batch: Mapping[str, Tensor]) -> Tensor:
        episodes = episodes_of(batch, self.machine.device)
        with self.machine.autocast():
            logprobs = response_logprobs(self.start.lm, episodes, self.sampling)
            with self.ref_policy() as lm:
                log_ratio = logprobs - response_logprobs(lm, episodes, self.sampling)
        return summed(log_ratio, episodes.response_mask).cpu()

    def fit(self, pool: Pool, number: int) -> None:
        """Trains on a pool, and adds the steps to the curve."""
        fit, rows, done = (
            self.params.fit,
            WeightedAnswers(self.queries, pool),
            len(self.curve) and self.curve[-1]["step"],
        )
        steps = steps_in(len(rows), fit.batch_size, fit.epochs)
        seed = derived_seed("fit", self.seed, number)
        options = training_options(self.machine, fit.epochs, fit.micro_batch_size, fit.lr, "linear", seed, steps)
        options |= {"gradient_accumulation_steps": fit.batch_size // fit.micro_batch_size, "bf16": False}

        def build(folder: str) -> Trainer:
            keywords = {
                "args": TrainingArguments(folder, **options),
                "data_collator": rows.batch,
                "train_dataset": rows,
            }
            return FitTrainer(self.start, self.sampling, self.machine, **keywords)

        self.recorder.say(
            f"round {number}: {len(rows):,} answers of {pool.weights.size:,}, {steps:,} steps of {fit.batch_size}"
        )
        curve = run_trainer(f"round {number}", build, steps, Later(self.recorder, done))
        self.curve += [{**row, "step": row["step"] + done, "round": number} for row in curve]
        self.start.lm.eval()


class Later:
    """A recorder whose steps go on from those of earlier rounds."""

    def __init__(self, recorder: Recorder, done: float) -> None:
        self.recorder, self.done = recorder, int(done)

    def record(self, step: int, values: Mapping[str, float]) -> None:
        """Hands on `values` at the step of all rounds."""
        self.recorder.record(step + self.done, values)

    def say(self, text: str) -> None:
        """Hands on a line."""
        self.recorder.say(text)


def unscored(texts: Sequence[str]) -> Tensor:
    """(N,) zeros: answers that are drawn for their KL alone cost no scoring."""
    return torch.zeros(len(texts))


def mean_log_ratio(drawn: Samples) -> float:
    """KL of a policy to the reference, nats per response: the mean log-ratio of its own answers."""
    return float(torch.as_tensor(drawn.log_ratios).double().mean())


def log_importance(log_ratios: Array, reference: int, policy: int) -> Array:
    """(P, N + M) log pi_ref / q of answers of the mixture q = (N pi_ref + M pi) / (N + M), at most log((N + M) / N).

    Args:
        log_ratios: (P, N + M) log pi - log pi_ref, nats.
        reference: N, answers of the reference to a prompt.
        policy: M, those of the policy.
    """
    return log(reference + policy) - np.logaddexp(log(reference), log(policy) + log_ratios)


def step(kl: float, target: float) -> float:
    """Factor of beta for a policy that is `kl` nats away instead of `target`, at most `LARGEST_STEP` either way."""
    return min(max(kl / target, 1 / LARGEST_STEP), LARGEST_STEP)


def refuse_foreign(samples: Samples, lm: PreTrainedModel, sampling: Sampling) -> None:
    """Refuses answers that this model cannot have written under these params.

    Raises: UserError that says what does not fit.
    """
    again = "`dvc repro samples` makes them again"
    rows, shape = lm.get_input_embeddings().weight.shape[0], samples.responses.shape
    if len(samples.prompts) != shape[0] or not samples.lengths.shape == samples.scores.shape == shape[:2]:
        raise UserError(f"the samples have {len(samples.prompts):,} prompts and answers to {shape[0]:,}; {again}")
    highest = max(int(samples.responses.max()), *(max(row["input_ids"]) for row in samples.prompts))
    if highest >= rows:
        raise UserError(
            f"the samples hold token {highest}, and the SFT model knows {rows}: they are another's; {again}"
        )
    if not 1 <= int(samples.lengths.min()) <= int(samples.lengths.max()) <= min(shape[2], sampling.max_new_tokens):
        raise UserError(f"the samples hold answers of no token, or of more than ppo.max_new_tokens; {again}")
