"""A head R(prefix, token) on the frozen SFT model learns the expected label of the answers that go on so.

It learns from the answers of stage `samples`, each with one label for the whole answer:

- hard: 1 if the score reaches a quantile of all scores, else 0, as in NADO;
- soft: w = exp(-(eta - s)+ / (alpha beta)), the probability with which soft rejection accepts the answer. With it
  NADO's exact distribution is the policy of highest CVaR_alpha at its KL (`rarlhf.risk.plan`).

The loss of an answer y of label w is a sum over its tokens,

    sum_i BCE(R(y_<i, y_i), w) + consistency sum_i KL(Bern(q_i) || Bern(R(y_<i, y_i))),
    q_i = sum_v p(v | y_<=i) R(y_<=i, v),

where p is the SFT model's distribution. BCE has its minimum at R(y_<i, v) = E_p[w | y_<=i], at which both sides of the
second sum are equal. It teaches tokens that no answer has; its gradient flows into both sides. Padding counts nothing;
the end of text is a token like others, with nothing after it.

Source: NADO (Meng et al. 2022, arXiv 2205.14219) and its code; soft labels are ours.

Letters for shapes: P prompts, N answers to each, B of a batch, Q query and T response tokens, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid, pad
from torch.utils.data import Dataset
from transformers import GPT2LMHeadModel, Trainer, TrainingArguments

from rarlhf.config.baselines import HeadParams
from rarlhf.config.errors import UserError
from rarlhf.config.params import Params
from rarlhf.decoding.draws import log_acceptance_of, planned
from rarlhf.decoding.prompts import Prompts, left_pad
from rarlhf.decoding.samples import Samples
from rarlhf.messages.progress import Recorder
from rarlhf.models.backbone import ModelFolders
from rarlhf.models.episodes import Episodes
from rarlhf.models.head import head_inputs, head_logits, new_head
from rarlhf.models.loading import load_tokenizer
from rarlhf.models.policy import Sampling, episode_states, logits_of, positions, sampling_of
from rarlhf.models.reference import RefPolicy
from rarlhf.system.machine import Machine
from rarlhf.training.fit import Places, batch_of, episodes_of, refuse_foreign
from rarlhf.training.supervised import LossCurve, Seat, run_trainer, steps_in, training_options

CPU = torch.device("cpu")


def threshold_of(scores: Tensor, settings: HeadParams) -> float:
    """The score, in score units, from which on a hard label is 1: the quantile of all scores (P, N)."""
    scores = scores.double()
    return scores.flatten().sort().values[int(settings.quantile * scores.numel())].item()


def labels_of(scores: Tensor, settings: HeadParams, threshold: float | None = None) -> Tensor:
    """(P, N) float32 labels in [0, 1] of scored answers.

    Args:
        scores: (P, N) score units.
        settings: section `head` with numbers in the place of `plan`.
        threshold: of hard labels, score units; None: that of these scores.
    Raises: UserError if all labels are equal, or a number is still `plan`.
    """
    scores = scores.double()
    if settings.labels == "hard":
        threshold = threshold_of(scores, settings) if threshold is None else threshold
        labels, key = (scores >= threshold).double(), f"head.quantile = {settings.quantile:g}"
    else:
        eta, kl_coef = planned(settings.eta, "head.eta"), planned(settings.kl_coef, "head.kl_coef")
        labels = log_acceptance_of(scores, eta, settings.alpha * kl_coef).exp()
        key = f"head.eta = {eta:g}, head.alpha = {settings.alpha:g}, head.kl_coef = {kl_coef:g}"
    lowest, highest = labels.min().item(), labels.max().item()
    if highest - lowest < 1e-6:
        raise UserError(
            f"{key}: all {labels.numel():,} answers have the label {highest:.3g}, so a head learns nothing from them; "
            f"scores are {scores.min().item():.3g} to {scores.max().item():.3g}: change it so that it divides them"
        )
    return labels.float()


class LabelledAnswers(Dataset[int]):
    """Answers with a label each; an example is the index of one, and `batch` joins them."""

    def __init__(self, queries: Prompts, samples: Samples, labels: Tensor) -> None:
        self.queries, self.samples = queries, samples
        self.labels = labels.flatten()

    def __len__(self) -> int:
        """P N answers."""
        return len(self.labels)

    def __getitem__(self, index: int) -> int:
        """The index itself."""
        return index

    def batch(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """The fields of `Episodes`, and the `labels` (B,)."""
        index = torch.tensor(indices)
        queries = self.queries.rows(index // self.samples.scores.shape[1])
        responses, lengths = self.samples.responses.flatten(0, 1)[index], self.samples.lengths.flatten()[index].long()
        return {**batch_of(queries, responses, lengths), "labels": self.labels[index]}


def head_losses(
    logits: Tensor, probabilities: Tensor, episodes: Episodes, labels: Tensor, consistency: float
) -> Tensor:
    """(B,) losses of answers, as this module's docstring has them, nats.

    Args:
        logits: (B, T, V) of R after each prefix, for every token.
        probabilities: (B, T, V) of the SFT model's next tokens after the same prefixes.
        episodes: the answers.
        labels: (B,) in [0, 1].
        consistency: weight of the second sum.
    """
    mask = episodes.response_mask
    taken = logits.gather(2, episodes.responses.unsqueeze(2)).squeeze(2)
    targets = labels.unsqueeze(1).expand_as(taken)
    losses = torch.where(mask, binary_cross_entropy_with_logits(taken, targets, reduction="none"), 0.0)
    if consistency and logits.shape[1] > 1:
        ahead = _log_expected(logits[:, 1:], probabilities[:, 1:]), _log_expected(-logits[:, 1:], probabilities[:, 1:])
        here = logsigmoid(taken[:, :-1]), logsigmoid(-taken[:, :-1])
        divergence = sum(one.exp() * (one - other) for one, other in zip(ahead, here, strict=True))
        losses = losses + consistency * pad(torch.where(mask[:, 1:], divergence, 0.0), (0, 1))
    return losses.sum(dim=1)


def _log_expected(logits: Tensor, probabilities: Tensor) -> Tensor:
    """(B, t) logarithm of the expectation of sigmoid(logits) (B, t, V)."""
    expected = (probabilities * logits.sigmoid()).sum(dim=-1)
    return expected.clamp(min=torch.finfo(expected.dtype).tiny).log()


class HeadTrainer(Trainer):
    """transformers' Trainer with the mean of `head_losses` on what a frozen model reads."""

    def __init__(  # noqa: PLR0913, PLR0917, each is a different thing
        self,
        head: nn.Module,
        policy: RefPolicy,
        sampling: Sampling,
        machine: Machine,
        consistency: float,
        **keywords: Any,
    ) -> None:
        super().__init__(head, **keywords)
        self.policy, self.sampling, self.machine, self.consistency = policy, sampling, machine, consistency
        self.model_accepts_loss_kwargs = False  # `compute_loss` gives a mean; the Trainer averages micro-batches

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Mean of `head_losses` over a batch of `LabelledAnswers`."""
        device = self.machine.device
        episodes, labels = episodes_of(inputs, device), inputs["labels"].to(device)
        first = episodes.queries.shape[1] - 1
        mask = torch.cat([episodes.query_mask, episodes.response_mask], dim=1)[:, :-1]
        with self.machine.autocast():
            with torch.no_grad(), self.policy() as lm:
                states = episode_states(lm, episodes)
                read = head_inputs(lm, states, torch.cat([episodes.queries, episodes.responses], dim=1)[:, :-1])
                shaped = self.sampling.shape(logits_of(lm, states[:, first:]), first=0)
            options = {"attention_mask": mask.long(), "position_ids": positions(mask)}
            logits = head_logits(self.model, read, first, **options)
        return head_losses(logits, shaped.softmax(dim=-1), episodes, labels, self.consistency).mean()


def train_head(  # noqa: PLR0913, PLR0917, each is a different thing
    settings: HeadParams,
    samples: Samples,
    places: Places,
    params: Params,
    machine: Machine,
    recorder: Recorder,
    seed: int,
) -> LossCurve:
    """Trains a head and writes it; returns its curve (step, loss in nats per answer, lr).

    Args:
        settings: section `head` with numbers in the place of `plan`.
        samples: answers of the SFT model, P prompts with N each.
        places: the SFT model, and the folder to write.
        params: all parameters.
        machine: device and precision.
        recorder: takes the loss.
        seed: of the initial weights and the order.
    Raises: UserError if the samples are not of this model, all labels are equal, or the head does not fit the model.
    """
    sft, tokenizer = ModelFolders(params.model, machine.device).open(places.sft), load_tokenizer(str(places.sft))
    sampling = sampling_of(params, tokenizer.eos_token_id)
    with sft() as lm:
        refuse_foreign(samples, lm, sampling)
    labels = labels_of(samples.scores, settings)
    head, curve = learn_head(settings, samples, labels, sft, sampling, Seat(machine, recorder, seed))
    head.save_pretrained(places.out)
    return curve


def learn_head(  # noqa: PLR0913, PLR0917, as above
    settings: HeadParams, samples: Samples, labels: Tensor, policy: RefPolicy, sampling: Sampling, seat: Seat
) -> tuple[GPT2LMHeadModel, LossCurve]:
    """A new head that has learnt labelled answers, in eval mode, and its curve as `train_head` gives it.

    Args:
        settings: section `head`.
        samples: answers of the model, P prompts with N each.
        labels: (P, N) in [0, 1].
        policy: the model, frozen.
        sampling: how it has answered.
        seat: machine, recorder, and the seed of the initial weights and the order.
    Raises: UserError if the head does not fit the model.
    """
    machine, recorder, seed = seat
    queries = left_pad([row["input_ids"] for row in samples.prompts], sampling.end_id, CPU)
    with policy() as lm:
        head = new_head(lm, settings, queries.tokens.shape[1] + sampling.max_new_tokens, seed).to(machine.device)
    rows = LabelledAnswers(queries, samples, labels)
    steps = steps_in(len(rows), settings.batch_size, settings.epochs)
    options = training_options(machine, settings.epochs, settings.micro_batch_size, settings.lr, "linear", seed, steps)
    options |= {
        "gradient_accumulation_steps": settings.batch_size // settings.micro_batch_size,
        "warmup_steps": round(settings.warmup * steps),
        "weight_decay": settings.weight_decay,
        "bf16": False,  # the loss is in float32, under the machine's own autocast
    }

    def build(folder: str) -> Trainer:
        keywords = {"args": TrainingArguments(folder, **options), "data_collator": rows.batch, "train_dataset": rows}
        return HeadTrainer(head, policy, sampling, machine, settings.consistency, **keywords)

    recorder.say(f"{len(rows):,} answers with labels of mean {labels.mean().item():.3f}, {steps:,} steps")
    curve = run_trainer("head", build, steps, recorder)
    return head.eval(), curve
