"""What stage `generate` does: continuations of the test prompts by one model, scored, with their KL to the SFT model.

The name is that of what comes out, scored continuations; drawing them is `rarlhf.decoding.sampling`.
"""

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
from rarlhf.decoding.rules import DecodingRule
from rarlhf.decoding.sampling import Decoding, draw, left_pad, uniform_numbers
from rarlhf.messages.progress import progress
from rarlhf.models.backbone import ModelFolders
from rarlhf.models.episodes import Episodes, chunks, real_tokens
from rarlhf.models.loading import load_tokenizer
from rarlhf.models.policy import response_logprobs, sampling_of
from rarlhf.models.reference import RefPolicy
from rarlhf.rewards.scorers import Score
from rarlhf.system.machine import Machine

Job = tuple[Query, int]  # a query and the index of its sample


class ScoredContinuations:
    """Draws, scores and measures continuations; made once for all seeds of a method."""

    def __init__(
        self, sft: Path, score: Score, params: Params, machine: Machine, rule: DecodingRule | None = None
    ) -> None:
        self.folders = ModelFolders(params.model, machine.device)
        self.tokenizer = load_tokenizer(str(sft))
        self.sft = self.folders.open(sft)
        self.score = score
        self.params = params
        self.machine = machine
        self.rule = rule
        self.sampling = sampling_of(params, self.tokenizer.eos_token_id)
        self.compiled = LatestCompiled()

    def __call__(self, name: str, model: Path, queries: Sequence[Query], seed: int) -> list[dict[str, Any]]:
        """Samples `generate.samples` continuations of each query.

        Args:
            name: what the progress bar calls it.
            model: folder of the model or adapter that is evaluated; it shares the SFT model's tokenizer.
            queries: test queries.
            seed: the run's seed; every method draws the same uniform numbers for it.
        Returns: rows of generations/METHOD/SEED.jsonl, all of a prompt together, prompts in order; `kl_sft` is the sum
            over the response of log pi - log pi_sft in nats.
        """
        policy, chat = self.folders.open(model), self.params.prompts.chat_template
        jobs = [(query, sample) for query in queries for sample in range(self.params.generate.samples)]
        names, shape = ("generate", self.params.generate.seed, seed), (len(jobs), self.sampling.max_new_tokens)
        uniforms = uniform_numbers(names, shape, self.rule.draws if self.rule else 1)
        rows: list[dict[str, Any]] = []
        texts: list[str] = []
        with progress(name, len(jobs)) as show:
            for index in chunks(torch.arange(len(jobs)), self.params.generate.batch_size):
                some = [jobs[i] for i in index]
                episodes, kl = self._batch(policy, some, uniforms[:, index])
                rows += _rows(some, episodes, kl, self.tokenizer, chat)
                messages = plain_prompts((query for query, _ in some), chat)
                texts += episode_texts(episodes, self.tokenizer, messages)
                show(len(rows), "")
        scores = self.score(texts).tolist()
        return [row | {"score": value} for row, value in zip(rows, scores, strict=True)]

    @torch.no_grad()
    def _batch(self, policy: RefPolicy, jobs: Sequence[Job], uniforms: Tensor) -> tuple[Episodes, Tensor]:
        """One response to each job, and their KL (B,) to the SFT model in nats.

        It is the KL of the distribution that the responses were drawn from. Without a rule both log-probabilities come
        from full passes. With a rule, drawing has kept the log-probabilities under the rule. If the rule chooses among
        several draws, the most that this can add is added to every response, so that their mean is an upper bound.
        """
        prompts = left_pad([query["input_ids"] for query, _ in jobs], self.sampling.end_id, self.machine.device)
        with self.machine.autocast():
            with policy() as lm:
                decoding = Decoding(lm, self.sampling, self.rule, self.compiled.of(lm, self.machine))
                episodes, logprobs, choice_kl = draw(decoding, prompts, uniforms.to(self.machine.device))
                if logprobs is None:
                    logprobs = response_logprobs(lm, episodes, self.sampling)
            with self.sft() as lm:
                log_ratio = logprobs - response_logprobs(lm, episodes, self.sampling)
        return episodes, torch.where(episodes.response_mask, log_ratio, 0.0).sum(dim=1) + choice_kl


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
