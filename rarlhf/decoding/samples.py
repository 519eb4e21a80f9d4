"""Scored answers of one model to prompts, and the folder that keeps them: what plans and fits learn from.

Which prompts: the first P of a permutation that the names of a random stream decide, in their own order. Each answer
has uniform numbers of its own from the same stream, so that neither the batch size nor another model changes them.

Letters: P prompts, N answers to each, T response tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rarlhf.config.errors import UserError
from rarlhf.config.params import Params, SampledParams
from rarlhf.data.prompts import Query, plain_prompts
from rarlhf.data.queries import episode_texts
from rarlhf.decoding.compiled import LatestCompiled
from rarlhf.decoding.prompts import left_pad
from rarlhf.decoding.rules import DecodingRule
from rarlhf.decoding.sampling import Decoding, sample_with_logprobs, uniform_numbers
from rarlhf.messages.progress import progress
from rarlhf.models.episodes import Episodes, chunks, widened
from rarlhf.models.policy import response_logprobs, sampling_of
from rarlhf.models.reference import RefPolicy
from rarlhf.rewards.scorers import Score
from rarlhf.system.files import read_jsonl, write_jsonl
from rarlhf.system.machine import Machine
from rarlhf.system.streams import generator

TENSORS, PROMPTS = "samples.safetensors", "prompts.jsonl"  # files of a folder


class Samples(NamedTuple):
    """Scored answers, those of a prompt together."""

    responses: Tensor  # (P, N, T) int32, the end id after their end
    lengths: Tensor  # (P, N) int32, real tokens, the end of text included
    scores: Tensor  # (P, N) float32, score units
    prompts: list[Query]  # P rows of the prompts' file
    log_ratios: Tensor | None = None  # (P, N) float32, log pi - log pi_ref in nats; None: drawn from pi_ref itself


@dataclass(frozen=True)
class Model:
    """What answers."""

    policy: RefPolicy  # opens the model
    tokenizer: PreTrainedTokenizerBase
    reference: RefPolicy | None = None  # opens pi_ref, to measure log-ratios to; None: nothing is measured
    rule: DecodingRule | None = None  # how it is decoded, one draw to an answer; None: plain sampling


class Sampler:
    """Draws and scores answers; made once for all models that share a scorer."""

    def __init__(self, score: Score, params: Params, machine: Machine) -> None:
        self.score = score
        self.params = params
        self.machine = machine
        self.compiled = LatestCompiled()

    def __call__(self, title: str, model: Model, queries: Sequence[Query], samples: int, *names: object) -> Samples:
        """Draws and scores `samples` answers to each query.

        Args:
            title: what the progress bar calls it.
            model: what answers.
            queries: P queries.
            samples: N.
            names: of the random stream.
        """
        sampling = sampling_of(self.params, model.tokenizer.eos_token_id)
        jobs = torch.arange(len(queries)).repeat_interleave(samples)
        uniforms = uniform_numbers(("samples", *names), (len(jobs), sampling.max_new_tokens))[0]
        texts: list[str] = []
        parts: list[tuple[Tensor, Tensor, Tensor]] = []
        with progress(title, len(jobs)) as show:
            for rows in chunks(torch.arange(len(jobs)), self.params.plan.batch_size):
                some = [queries[int(i)] for i in jobs[rows]]
                episodes, log_ratios = self._batch(model, some, uniforms[rows])
                parts.append((episodes.responses.cpu(), episodes.response_mask.sum(dim=1).cpu(), log_ratios.cpu()))
                messages = plain_prompts(some, self.params.prompts.chat_template)
                texts += episode_texts(episodes, model.tokenizer, messages)
                show(len(texts), "")
        responses, lengths, ratios = (list(fields) for fields in zip(*parts, strict=True))
        shape = (len(queries), samples)
        return Samples(
            widened(responses, sampling.end_id).int().unflatten(0, shape),
            torch.cat(lengths).int().view(shape),
            self.score(texts).float().cpu().view(shape),
            list(queries),
            torch.cat(ratios).view(shape) if model.reference else None,
        )

    @torch.no_grad()
    def _batch(self, model: Model, queries: Sequence[Query], uniforms: Tensor) -> tuple[Episodes, Tensor]:
        """One answer to each query, and its log-ratio (B,) in nats, 0 where none is measured."""
        sampling = sampling_of(self.params, model.tokenizer.eos_token_id)
        device = self.machine.device
        prompts = left_pad([query["input_ids"] for query in queries], sampling.end_id, device)
        with self.machine.autocast():
            with model.policy() as lm:
                decoding = Decoding(lm, sampling, model.rule, self.compiled.of(lm, self.machine))
                episodes, logprobs = sample_with_logprobs(decoding, prompts, uniforms.to(device))
                if model.reference is None:
                    return episodes, torch.zeros(len(queries))
                if model.rule is None:  # the same numbers as the reference's, and so exactly 0 at the reference itself
                    logprobs = response_logprobs(lm, episodes, sampling)
            with model.reference() as lm:
                log_ratio = logprobs - response_logprobs(lm, episodes, sampling)
        return episodes, torch.where(episodes.response_mask, log_ratio, 0.0).sum(dim=1)


def chosen_prompts(queries: Sequence[Query], wanted: SampledParams, split: str, seed: int) -> list[Query]:
    """The queries that are answered: as many as wanted, drawn without replacement, in their own order.

    Args:
        queries: all of the split.
        wanted: params `plan.train` or `plan.test`.
        split: train or test, part of the stream's name.
        seed: params `plan.seed`.
    Raises: UserError if there are fewer.
    """
    if wanted.prompts > len(queries):
        raise UserError(
            f"plan.{split}.prompts = {wanted.prompts:,}: there are {len(queries):,} prompts in the split; lower it"
        )
    order = torch.randperm(len(queries), generator=generator("samples", "prompts", seed, split))
    return [queries[int(i)] for i in order[: wanted.prompts].sort().values]


def write_samples(samples: Samples, folder: Path) -> None:
    """Writes the tensors and the prompts into an empty folder."""
    fields = {name: tensor for name, tensor in samples._asdict().items() if isinstance(tensor, Tensor)}
    save_file({name: tensor.contiguous() for name, tensor in fields.items()}, folder / TENSORS)
    write_jsonl(folder / PROMPTS, samples.prompts)


def read_samples(folder: Path) -> Samples:
    """Reads what `write_samples` wrote.

    Raises: UserError if a file is missing, or is not whole.
    """
    try:
        tensors: dict[str, Any] = load_file(folder / TENSORS)
        prompts = cast("list[Query]", read_jsonl(folder / PROMPTS))
    except (FileNotFoundError, SafetensorError) as error:
        raise UserError(f"{folder} holds no whole samples ({error}); `dvc repro samples` makes them") from error
    return Samples(**tensors, prompts=prompts)
