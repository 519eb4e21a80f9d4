"""Which of two answers to a prompt a language model that was made for chats prefers.

Each pair is asked about in both orders, and the two letters' probabilities are compared, so that nothing is drawn.
Letters for shapes: N questions, P' prompts that are asked about.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rarlhf.config.errors import UserError
from rarlhf.config.judging import QUESTION_PARTS, PreferenceParams
from rarlhf.evaluation.generations import FloatArray, Generations, Tables
from rarlhf.models.context import positions_of
from rarlhf.models.given import given_chat_judge
from rarlhf.models.policy import logits_of
from rarlhf.system.machine import Machine
from rarlhf.system.streams import derived_seed

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LETTERS = ("A", "B")  # what the judge says for the first and the second answer
WIN, TIE, LOSS = 1.0, 0.5, 0.0


class Pair(NamedTuple):
    """Two answers to one prompt."""

    prompt: str
    first: str
    second: str


Leanings = Callable[
    [Sequence[Pair]], FloatArray
]  # N pairs to (N,): above 0 where the first is preferred, 0 for neither


@dataclass(frozen=True)
class Preferences:
    """What the judge prefers.

    Attributes:
        against: the method that every other one is compared with.
        prompt_ids: (P',) of the prompts that are asked about.
        verdicts: method -> seed -> (P',) of `WIN`, `TIE` and `LOSS`.
    """

    against: str
    prompt_ids: Sequence[int]
    verdicts: Mapping[str, Mapping[int, FloatArray]]


class ChatJudge:
    """Asks a chat model which of two answers is better."""

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        params: PreferenceParams,
        machine: Machine,
    ) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.params = params
        self.machine = machine
        self.context = positions_of(model.config)
        self.letters = [self._tokens_of(letter) for letter in LETTERS]

    def __call__(self, pairs: Sequence[Pair]) -> FloatArray:
        """Log-odds of the letter A, which stands for the first answer, against B.

        Args:
            pairs: N.

        Returns: (N,) nats.

        Raises: UserError if a question is longer than the judge's context, or its chat template refuses it.
        """
        rows = [self._ids(pair) for pair in pairs]
        order = sorted(range(len(rows)), key=lambda i: (len(rows[i]), i))
        found = torch.zeros(len(rows), dtype=torch.float64)
        for start in range(0, len(order), self.params.batch_size):
            some = order[start : start + self.params.batch_size]
            found[some] = self._log_odds([rows[i] for i in some])
        return np.asarray(found.numpy(), dtype=np.float64)

    @torch.no_grad()
    def _log_odds(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """(R,) float64 on the CPU."""
        device, width = self.model.device, max(map(len, rows))
        ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=device)
        lengths = torch.tensor([len(row) for row in rows], device=device)
        mask = torch.arange(width, device=device) < lengths[:, None]
        with self.machine.autocast():
            states = self.model.base_model(input_ids=ids, attention_mask=mask.long(), use_cache=False).last_hidden_state
            logits = logits_of(self.model, states[torch.arange(len(rows), device=device), lengths - 1][:, None])[:, 0]
        first, second = (logits.double()[:, tokens].logsumexp(dim=1) for tokens in self.letters)
        return (first - second).cpu()

    def _ids(self, pair: Pair) -> list[int]:
        message = [{"role": "user", "content": question(self.params.instruction, pair)}]
        from jinja2 import TemplateError

        try:
            text = str(self.tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True))
        except TemplateError as error:
            raise UserError(
                f"judge.preference.source = {self.params.source!r}: its chat template refuses a message ({error})"
            ) from error
        ids = list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        if self.context and len(ids) > self.context:
            raise UserError(
                f"judge.preference.source = {self.params.source!r}: a question has {len(ids):,} tokens, and the "
                f"judge's context {self.context:,}; name another judge, or a shorter judge.preference.instruction"
            )
        return ids

    def _tokens_of(self, letter: str) -> list[int]:
        """Tokens that are the letter, with or without a space before it."""
        written = (self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in (letter, f" {letter}"))
        found = sorted({ids[0] for ids in written if len(ids) == 1})
        if not found:
            raise UserError(
                f"judge.preference.source = {self.params.source!r}: its tokenizer has no token for the letter "
                f"{letter}; name another judge"
            )
        return found


def question(instruction: str, pair: Pair) -> str:
    """The instruction with the texts of a pair in it; braces within these texts stay as they are."""
    parts = dict(zip(QUESTION_PARTS, pair, strict=True))
    return re.sub("|".join(map(re.escape, QUESTION_PARTS)), lambda found: parts[found[0]], instruction)


def open_chat_judge(params: PreferenceParams, machine: Machine) -> ChatJudge:
    """Opens the language model of `judge.preference`.

    Raises: UserError as `given_chat_judge`, and `ChatJudge`.
    """
    given = given_chat_judge(params)
    return ChatJudge(given.model.to(machine.device), given.tokenizer, params, machine)


def preferences(tables: Tables, leanings: Leanings, params: PreferenceParams) -> Preferences:
    """Every other method against the one of `judge.preference.against`, seed by seed.

    The first answers to each of `judge.preference.prompts` prompts are compared, the same prompts for all.

    Args:
        tables: generations of every method and seed.
        leanings: the judge.
        params: section `judge.preference`.

    Returns: of equal answers a tie, for which the judge is not asked.
    """
    base = tables[params.against]
    prompts = len(next(iter(base.values())).prompts)
    order = np.random.default_rng(derived_seed("preference")).permutation(prompts)
    places = sorted(int(place) for place in order[: params.prompts])
    pairs = {
        (method, seed): _pairs(table, base[seed], places)
        for method, by_seed in tables.items()
        if method != params.against
        for seed, table in by_seed.items()
    }
    known = verdicts_of([pair for some in pairs.values() for pair in some], leanings)
    found: dict[str, dict[int, FloatArray]] = {}
    for (method, seed), some in pairs.items():
        found.setdefault(method, {})[seed] = np.array([known[pair] for pair in some])
    ids = next(iter(base.values())).prompt_ids
    return Preferences(params.against, [int(ids[place]) for place in places], found)


def _pairs(table: Generations, base: Generations, places: Sequence[int]) -> list[Pair]:
    return [Pair(table.prompts[i], table.continuations[i][0], base.continuations[i][0]) for i in places]


def verdicts_of(pairs: Sequence[Pair], leanings: Leanings) -> dict[Pair, float]:
    """Whether the first answer of each pair wins: only if the judge prefers it in both orders; else it loses or ties.

    Args:
        pairs: equal ones are asked about once.
        leanings: the judge.
    """
    asked = [pair for pair in dict.fromkeys(pairs) if pair.first != pair.second]
    turned = [Pair(pair.prompt, pair.second, pair.first) for pair in asked]
    found = {pair: TIE for pair in pairs}
    if asked:
        answers = np.sign(leanings([*asked, *turned])).reshape(2, -1)
        for pair, forward, backward in zip(asked, *answers, strict=True):
            found[pair] = TIE if forward != -backward or forward == 0 else WIN if forward > 0 else LOSS
    return found
