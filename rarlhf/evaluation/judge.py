"""What stage `judge` does: the answers as judges see them that no training saw.

Equal texts of one file are judged once, so that the cost falls with their number.
"""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from rarlhf.config.errors import UserError
from rarlhf.config.judging import NO_JUDGE, ScorerParams
from rarlhf.config.params import Params
from rarlhf.evaluation.generations import FloatArray, Generations
from rarlhf.evaluation.judgements import Judgement
from rarlhf.evaluation.language_judge import LanguageJudge
from rarlhf.rewards.scorers import Score, load_reward_model
from rarlhf.system.machine import Machine


class Judges:
    """The scorers of section `judge`; made once for all generations."""

    def __init__(self, reward: Path, second_scorer: Path, params: Params, machine: Machine) -> None:
        judge = params.judge
        self.second = None
        if judge.second_scorer.source != NO_JUDGE:
            self.second = load_reward_model(second_scorer, judge.second_scorer, machine)
        self.whole = judge.toxicity.text == "whole"
        sections: dict[str, tuple[Path, ScorerParams]] = {
            "reward": (reward, params.reward),
            "second_scorer": (second_scorer, judge.second_scorer),
        }
        chosen = sections.get(judge.toxicity.scorer)
        self.toxicity = Toxicity(*chosen, machine) if chosen else None

    def __call__(self, table: Generations, language: LanguageJudge | None) -> Judgement:
        """What the judges say of one model's generations.

        Args:
            table: the generations.
            language: the language model; None where there is none.
        Raises: UserError as `load_reward_model`'s scorers, and `Toxicity`.
        """
        pairs = [
            (prompt, text) for prompt, group in zip(table.prompts, table.continuations, strict=True) for text in group
        ]
        shape = table.scores.shape
        whole = [prompt + text for prompt, text in pairs]
        second = once(self.second, whole).reshape(shape) if self.second else None
        toxicity = None
        if self.toxicity:
            toxicity = once(self.toxicity, whole if self.whole else [text for _, text in pairs]).reshape(shape)
        if language is None:
            return Judgement(second, toxicity=toxicity)
        distinct = list(dict.fromkeys(pairs))
        place = {pair: i for i, pair in enumerate(distinct)}
        rows = [place[pair] for pair in pairs]
        nll, tokens = language.likelihoods([prompt for prompt, _ in distinct], [text for _, text in distinct])
        return Judgement(
            second, nll.double().numpy()[rows].reshape(shape), tokens.long().numpy()[rows].reshape(shape), toxicity
        )


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
            raise UserError(
                f"judge.toxicity.scorer: {self.params.source} gave {abs(float(scores[bad[0]])):g}, which is no "
                "probability; name another scorer or none"
            )
        return values


def once(score: Score, texts: Sequence[str]) -> FloatArray:
    """(N,) scores of N texts, each different text scored once."""
    distinct = list(dict.fromkeys(texts))
    place = {text: i for i, text in enumerate(distinct)}
    return score(distinct).double().numpy()[[place[text] for text in texts]]
