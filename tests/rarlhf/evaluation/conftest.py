"""Small tables of generations, made from the numbers a test cares about."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from rarlhf.config.load import load_params
from rarlhf.config.params import Params
from rarlhf.evaluation.generations import Continuation, Generations, Tables, to_generations

MakeTable = Callable[..., Generations]
WORDS = ["a", "calm", "and", "warm", "film", "with", "slow", "music", "that", "we", "liked"]


def rows_of(
    scores: Sequence[Sequence[float]],
    prompt_scores: Sequence[float] | None = None,
    kl: float = 0.0,
    texts: Sequence[Sequence[str]] | None = None,
) -> list[Continuation]:
    return [
        Continuation(
            prompt_id=prompt,
            prompt=f"prompt {prompt}",
            prompt_score=float(prompt if prompt_scores is None else prompt_scores[prompt]),
            label=prompt % 2,
            sample=sample,
            continuation=f"text {prompt} {sample}" if texts is None else texts[prompt][sample],
            tokens=3 + sample,
            score=float(score),
            kl_sft=kl,
        )
        for prompt, of_prompt in enumerate(scores)
        for sample, score in enumerate(of_prompt)
    ]


@pytest.fixture
def make_rows() -> Callable[..., list[Continuation]]:
    return rows_of


@pytest.fixture
def make_table() -> MakeTable:
    return lambda *args, **kwargs: to_generations(rows_of(*args, **kwargs), "a test")


SHIFTS = {"base": (-0.3, 0.4), "sft": (0.0, 0.0), "rlhf": (1.2, 2.1), "ra_rlhf": (0.9, 2.0)}  # reward, KL


def synthetic_tables(prompts: int = 40, samples: int = 4, seeds: Sequence[int] = (1, 2, 3)) -> Tables:
    """Four methods on shared prompts, with markup in some continuations."""
    difficulty = np.random.default_rng(0).normal(size=prompts)
    return {
        method: {seed: _synthetic(difficulty, samples, shift, kl, (index, seed)) for seed in seeds}
        for index, (method, (shift, kl)) in enumerate(SHIFTS.items())
    }


def _synthetic(difficulty: np.ndarray, samples: int, shift: float, kl: float, key: tuple[int, int]) -> Generations:
    random = np.random.default_rng(key)
    scores = 0.6 * difficulty[:, None] + shift + random.normal(size=(len(difficulty), samples))
    texts = [[" ".join(random.choice(WORDS, 6)) + " <b>&" for _ in of_prompt] for of_prompt in scores]
    return to_generations(rows_of(scores.tolist(), difficulty.tolist(), kl, texts), "synthetic")


@pytest.fixture(scope="session")
def tables() -> Tables:
    return synthetic_tables()


@pytest.fixture(scope="session")
def perplexities() -> dict[str, dict[int, float]]:
    return {
        "base": {1: 44.0, 2: 44.0, 3: 44.0},
        "sft": {1: 39.6, 2: 39.6, 3: 39.6},
        "rlhf": {1: 44.1, 2: 44.5, 3: 44.9},
        "ra_rlhf": {1: 47.0, 2: 47.9, 3: 46.8},
    }


@pytest.fixture(scope="session")
def params() -> Params:
    """The default preset with the KL target that `SHIFTS` is near, and few bootstrap draws."""
    preset = load_params(Path(__file__).parents[3] / "presets" / "tiny.yaml")
    kl = preset.kl.model_copy(update={"target": 2.0})
    return preset.model_copy(update={"kl": kl, "evaluate": preset.evaluate.model_copy(update={"bootstrap_draws": 100})})
