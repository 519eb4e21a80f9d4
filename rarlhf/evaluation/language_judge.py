"""The language model that judges: how likely it finds continuations, and where prompts lie in its space."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from rarlhf.config.judging import BASE
from rarlhf.config.params import Params
from rarlhf.evaluation.perplexity import token_losses
from rarlhf.models.backbone import ModelFolders
from rarlhf.models.context import positions_of
from rarlhf.models.given import given_judge
from rarlhf.models.loading import load_tokenizer
from rarlhf.models.states import mean_states
from rarlhf.system.machine import Machine

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Likelihoods(NamedTuple):
    """How likely N continuations are."""

    nll: Tensor  # (N,) float32, nats, summed over the continuation's tokens given its prompt
    tokens: Tensor  # (N,) int32, of the continuation by the judge's tokenizer; 0 for an empty one


class LanguageJudge:
    """Measures texts under a fixed language model."""

    def __init__(
        self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", batch_size: int, machine: Machine
    ) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.machine = machine
        self.context = positions_of(model.config)

    def likelihoods(self, prompts: Sequence[str], continuations: Sequence[str]) -> Likelihoods:
        """The negative log-likelihood of each continuation given its prompt.

        Prompt and continuation are tokenised as one text. What counts as the continuation are its tokens beyond as
        many as the prompt alone has, as in `scripts/evaluation/evaluate_generations.py` of alisawuffles/DExperts. Of a
        text longer than the context, the beginning is left out. A text without a token before its continuation is
        measured from its second token on.

        Args:
            prompts: N texts.
            continuations: N texts.
        """
        distinct = list(dict.fromkeys(prompts))
        starts = {prompt: len(ids) for prompt, ids in zip(distinct, self._ids(distinct), strict=True)}
        whole = self._ids([prompt + text for prompt, text in zip(prompts, continuations, strict=True)])
        new = [len(ids) - max(starts[prompt], 1) for ids, prompt in zip(whole, prompts, strict=True)]
        nll = torch.zeros(len(whole))
        rows = sorted((i for i, count in enumerate(new) if count > 0), key=lambda i: (len(whole[i]), i))
        for first in range(0, len(rows), self.batch_size):
            some = rows[first : first + self.batch_size]
            kept = [whole[i][-self.context :] if self.context else whole[i] for i in some]
            with self.machine.autocast():
                losses = token_losses(self.model, kept)
            for i, ids, row in zip(some, kept, losses.cpu(), strict=True):
                last = len(ids) - 1
                nll[i] = row[max(last - new[i], 0) : last].sum()
        return Likelihoods(nll, torch.tensor([max(count, 0) for count in new], dtype=torch.int32))

    def embeddings(self, prompts: Sequence[str]) -> Tensor:
        """The mean of the last hidden states over each prompt's tokens: (N, H) float32; 0 for a prompt without one."""
        rows = [ids[-self.context :] if self.context else ids for ids in self._ids(prompts)]
        return mean_states(self.model, rows, self.batch_size, self.machine)

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        return list(self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]) if texts else []


@contextmanager
def open_language_judge(base: Path, params: Params, machine: Machine) -> Iterator[LanguageJudge]:
    """Opens the language model of `judge.language_model`.

    Args:
        base: folder of the base model, for source `base`.
        params: `judge.language_model` and `model` are read.
        machine: device and precision.
    Raises: UserError if it is not there, or is no language model.
    """
    judge = params.judge.language_model
    if judge.source == BASE:
        with ModelFolders(params.model, machine.device).open(base)() as model:
            yield LanguageJudge(model, load_tokenizer(str(base)), judge.batch_size, machine)
        return
    given = given_judge(judge)
    yield LanguageJudge(given.model.to(machine.device), given.tokenizer, judge.batch_size, machine)
