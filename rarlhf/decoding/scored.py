"""What stage `generate` does: continuations of the test prompts by one model, scored, with their KL to the SFT model.

The name is that of what comes out, scored continuations; drawing them is `rarlhf.decoding.sampling`.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rarlhf.config.params import Params
from rarlhf.data.prompts import Query, plain_prompts
from rarlhf.data.queries import TextQuery, continuation, episode_texts
from rarlhf.decoding.compiled import LatestCompiled
from rarlhf.decoding.draws import ScoreOf
from rarlhf.decoding.eager import shared_logprobs
from rarlhf.decoding.prompts import left_pad
from rarlhf.decoding.rules import DecodingRule
from rarlhf.decoding.sampling import Decoding, Numbers, Responses, draw, random_numbers
from rarlhf.messages.progress import progress
from rarlhf.models.backbone import ModelFolders
from rarlhf.models.episodes import Episodes, chunks, real_tokens
from rarlhf.models.loading import load_tokenizer
from rarlhf.models.policy import sampling_of
from rarlhf.models.reference import RefPolicy
from rarlhf.rewards.scorers import Score
from rarlhf.system.machine import Machine

Job = tuple[Query, int]  # a query and the index of its sample
Drawn = tuple[dict[str, Any], str]  # a row without its score, and the text that is scored


class ScoredContinuations:
    """Draws, scores and measures continuations; made once for all seeds of a method."""

    def __init__(self, sft: Path, score: Score, params: Params, machine: Machine) -> None:
        self.folders = ModelFolders(params.model, machine.device)
        self.sft_folder = sft
        self.tokenizer = load_tokenizer(str(sft))
        self.sft = self.folders.open(sft)
        self.score = score
        self.params = params
        self.machine = machine
        self.sampling = sampling_of(params, self.tokenizer.eos_token_id)
        self.compiled = LatestCompiled()

    def open(self, model: Path) -> RefPolicy:
        """The model or adapter in a folder; the SFT model itself is opened once."""
        return self.sft if model.samefile(self.sft_folder) else self.folders.open(model)

    def scores_of(self, queries: Sequence[Query]) -> ScoreOf:
        """Scores episodes of these queries, for a rule that chooses by them."""
        messages = plain_prompts(queries, self.params.prompts.chat_template)
        return lambda episodes: self.score(episode_texts(episodes, self.tokenizer, messages))

    def __call__(  # noqa: PLR0913, PLR0917, each is a different thing
        self,
        name: str,
        policy: RefPolicy,
        queries: Sequence[Query],
        seed: int,
        parts: Path | None = None,
        rule: DecodingRule | None = None,
    ) -> list[dict[str, Any]]:
        """Samples `generate.samples` continuations of each query.

        Queries of like length share a batch, and all samples of one query its pass.

        Args:
            name: what the progress bar calls it.
            policy: the model or adapter that is evaluated, as `open` gives it; it shares the SFT model's tokenizer.
            queries: test queries.
            seed: the run's seed; every method draws the same uniform numbers for it.
            parts: file that keeps what is drawn, a line for each batch; a call that was cut short goes on from there.
            rule: how the model is decoded; None for plain sampling.
        Returns: rows of generations/METHOD/SEED.jsonl, all of a prompt together, prompts in order; `kl_sft` is the sum
            over the response of log pi - log pi_sft in nats; with a rule, `draws` is how many responses were drawn.
        """
        samples = self.params.generate.samples
        jobs = [(query, sample) for query in queries for sample in range(samples)]
        names, shape = ("generate", self.params.generate.seed, seed), (len(jobs), self.sampling.max_new_tokens)
        numbers = random_numbers(names, shape, rule.draws if rule else 1)
        by_length = sorted(range(len(jobs)), key=lambda i: len(jobs[i][0]["input_ids"]))
        drawn: list[Drawn] = []
        with progress(name, len(jobs)) as show:
            kept = _read(parts) if parts else []
            for number, index in enumerate(chunks(torch.tensor(by_length), self.params.generate.batch_size)):
                if number < len(kept):
                    drawn += kept[number]
                else:
                    some = [jobs[i] for i in index]
                    drawn += self._drawn(some, *self._batch(policy, rule, some, numbers.rows(index)), rule is not None)
                    if parts:
                        _append(parts, drawn[-len(some) :])
                show(len(drawn), "")
        ordered = [one for _, one in sorted(zip(by_length, drawn, strict=True), key=lambda pair: pair[0])]
        scores = self.score([text for _, text in ordered]).tolist()
        return [row | {"score": value} for (row, _), value in zip(ordered, scores, strict=True)]

    def _drawn(self, jobs: Sequence[Job], made: Responses, kl: Tensor, ruled: bool) -> list[Drawn]:
        chat, episodes = self.params.prompts.chat_template, made.episodes
        rows = _rows(jobs, episodes, kl, self.tokenizer, chat)
        if ruled:
            rows = [row | {"draws": draws} for row, draws in zip(rows, made.draws.tolist(), strict=True)]
        messages = plain_prompts((query for query, _ in jobs), chat)
        return list(zip(rows, episode_texts(episodes, self.tokenizer, messages), strict=True))

    @torch.no_grad()
    def _batch(
        self, policy: RefPolicy, rule: DecodingRule | None, jobs: Sequence[Job], numbers: Numbers
    ) -> tuple[Responses, Tensor]:
        """One response to each job, and their KL (B,) to the SFT model in nats.

        It is the KL of the distribution that the responses were drawn from. If a rule chooses among several draws, what
        that adds is in it, so that the mean is an upper bound (`rarlhf.data.acceptance`).
        """
        prompts = left_pad([query["input_ids"] for query, _ in jobs], self.sampling.end_id, self.machine.device)
        with self.machine.autocast():
            with policy() as lm:
                decoding = Decoding(lm, self.sampling, rule, self.compiled.of(lm, self.machine))
                made = draw(decoding, prompts, numbers.to(self.machine.device))
            if policy is self.sft and (rule is None or not rule.reshapes):
                return made, made.choice_nats
            with self.sft() as lm:
                log_ratio = made.logprobs - shared_logprobs(lm, made.episodes, self.sampling)
        return made, torch.where(made.episodes.response_mask, log_ratio, 0.0).sum(dim=1).cpu() + made.choice_nats


def _rows(
    jobs: Sequence[Job], episodes: Episodes, kl: Tensor, tokenizer: PreTrainedTokenizerBase, chat: bool
) -> list[dict[str, Any]]:
    responses, masks = episodes.responses.tolist(), episodes.response_mask.tolist()
    rows = []
    for (query, sample), response, mask, nats in zip(jobs, responses, masks, kl.tolist(), strict=True):
        ids = real_tokens(response, mask)
        start = TextQuery(query["prompt"], query["input_ids"])
        rows.append(
            {
                "prompt_id": query["prompt_id"],
                "prompt": query["prompt"],
                "prompt_score": query["prompt_score"],
                "label": query["label"],
                "sample": sample,
                "continuation": continuation(start, ids, tokenizer, chat),
                "tokens": len(ids),
                "kl_sft": nats,
            }
        )
    return rows


def _read(parts: Path) -> list[list[Drawn]]:
    """The batches that `_append` wrote. A last one that a kill cut off is deleted from the file."""
    if not parts.is_file():
        return []
    lines = parts.read_bytes().splitlines(keepends=True)
    whole = [line for line in lines if line.endswith(b"\n")]
    if len(whole) < len(lines):
        parts.write_bytes(b"".join(whole))
    return [[(row, text) for row, text in json.loads(line)] for line in whole]


def _append(parts: Path, batch: Sequence[Drawn]) -> None:
    with parts.open("a", encoding="utf-8", newline="\n") as stream:
        stream.write(json.dumps(batch) + "\n")
        stream.flush()
        os.fsync(stream.fileno())
