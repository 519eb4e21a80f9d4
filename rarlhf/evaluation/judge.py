"""What stage `judge` does: the answers as judges see them that no training saw.

Equal texts are judged once, whichever methods they come from, so that the cost falls with their number.
"""

from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
from torch import Tensor

from rarlhf.config.errors import UserError
from rarlhf.config.judging import NO_JUDGE, ScorerParams
from rarlhf.config.params import Params
from rarlhf.evaluation.generations import FloatArray, Generations
from rarlhf.evaluation.judgements import Judgement
from rarlhf.evaluation.language_judge import LanguageJudge
from rarlhf.rewards.scorers import Score, load_reward_model
from rarlhf.system.machine import Machine

Pair = tuple[str, str]  # a prompt and its continuation
Asked = TypeVar("Asked", bound=Hashable)


class Judges:
    """The judges of section `judge`; made once for all generations, so that they remember what they have judged."""

    def __init__(
        self, reward: Path, second_scorer: Path, language: LanguageJudge | None, params: Params, machine: Machine
    ) -> None:
        judge = params.judge
        self.second = None
        if judge.second_scorer.source != NO_JUDGE:
            self.second = Remembered(_scores(load_reward_model(second_scorer, judge.second_scorer, machine)))
        self.whole = judge.toxicity.text == "whole"
        sections: dict[str, tuple[Path, ScorerParams]] = {
            "reward": (reward, params.reward),
            "second_scorer": (second_scorer, judge.second_scorer),
        }
        chosen = sections.get(judge.toxicity.scorer)
        self.toxicity = Remembered(_scores(Toxicity(*chosen, machine))) if chosen else None
        self.language = Remembered(_likelihoods(language)) if language else None

    def __call__(self, table: Generations) -> Judgement:
        """What the judges say of one model's generations.

        Raises: UserError as `load_reward_model`'s scorers, and `Toxicity`.
        """
        pairs = [
            (prompt, text) for prompt, group in zip(table.prompts, table.continuations, strict=True) for text in group
        ]
        shape = table.scores.shape
        whole = [prompt + text for prompt, text in pairs]
        alone = [text for _, text in pairs]
        second = self.second(whole).reshape(shape) if self.second else None
        toxicity = self.toxicity(whole if self.whole else alone).reshape(shape) if self.toxicity else None
        if self.language is None:
            return Judgement(second, toxicity=toxicity)
        nll, tokens = self.language(pairs).T
        return Judgement(second, nll.reshape(shape), tokens.astype(np.int64).reshape(shape), toxicity)


class Remembered(Generic[Asked]):
    """Asks a judge of each different text once."""

    def __init__(self, judge: Callable[[Sequence[Asked]], FloatArray]) -> None:
        self.judge = judge
        self.known: dict[Asked, FloatArray] = {}

    def __call__(self, asked: Sequence[Asked]) -> FloatArray:
        """(N,) or (N, c), what the judge says of N texts."""
        new = [one for one in dict.fromkeys(asked) if one not in self.known]
        if new:
            self.known.update(zip(new, self.judge(new), strict=True))
        return np.array([self.known[one] for one in asked])


def _scores(score: Score) -> Callable[[Sequence[str]], FloatArray]:
    return lambda texts: score(texts).double().numpy()


def _likelihoods(language: LanguageJudge) -> Callable[[Sequence[Pair]], FloatArray]:
    def judge(pairs: Sequence[Pair]) -> FloatArray:
        nll, tokens = language.likelihoods([prompt for prompt, _ in pairs], [text for _, text in pairs])
        return np.stack([nll.double().numpy(), tokens.double().numpy()], axis=1)

    return judge


class Toxicity:
    """The probability that a scorer gives to the unwanted class."""

    def __init__(self, folder: Path, params: ScorerParams, machine: Machine) -> None:
        self.params = params
        self.score = load_reward_model(folder, params.model_copy(update={"output": "probability"}), machine)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """(B,) float32 in [0, 1] of B texts.

        Raises: UserError if the scorer is a function that gives no probability.
        """
        scores = self.score(texts)
        values = -scores if self.params.sign == -1 else 1 - scores
        bad = ((values < 0) | (values > 1)).nonzero().flatten().tolist()
        if bad:
            given = self.params.sign * float(scores[bad[0]])
            raise UserError(
                f"judge.toxicity.scorer: {self.params.source} gave {given:g}, which is no probability; name another "
                "scorer or none"
            )
        return values
