"""The samples that a reader can browse in the report: which prompts and answers, as JSON within the page."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from rarlhf.config.methods import RLHF, in_order, is_trained, label_of
from rarlhf.config.params import EvaluateParams
from rarlhf.evaluation.comparisons import any_table
from rarlhf.evaluation.generations import BoolArray, IntArray, Tables
from rarlhf.evaluation.samples import visible
from rarlhf.evaluation.words import counted

LIMIT = 2_500_000  # bytes of JSON, so that the page stays at about 3 MB
_UNSAFE = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"}  # no text can end the script element that holds it


@dataclass(frozen=True)
class Browser:
    """What the page holds.

    Attributes:
        data: JSON that may stand in a script element.
        told: what is in it and what was left out, in one sentence.
    """

    data: str
    told: str


def browser(tables: Tables, tail: BoolArray, params: EvaluateParams) -> Browser | None:
    """The prompts to browse, with as many answers of each seed as `LIMIT` allows; None where no prompt is wanted.

    Where one answer of each seed is too much, fewer seeds are taken, and then fewer prompts.

    Args:
        tables: generations of every method and seed.
        tail: (P,) bool, the prompt tail.
        params: section `evaluate`, of which `browser_prompts` and `seed` are read.
    """
    if not params.browser_prompts:
        return None
    seeds, (prompts, samples) = len(next(iter(tables.values()))), any_table(tables).scores.shape
    wanted = params.browser_prompts
    while True:
        chosen = chosen_prompts(tail, wanted, params.seed)
        for of_seeds, of_samples in _sizes(seeds, samples):
            data = _as_json(_content(tables, tail, chosen, of_seeds, of_samples))
            if len(data.encode("utf-8")) <= LIMIT or (wanted, of_seeds, of_samples) == (1, 1, 1):
                shown = (len(chosen), of_seeds, of_samples)
                return Browser(data, _told(shown, (prompts, seeds, samples), int(tail[chosen].sum())))
        wanted = max(1, len(chosen) // 2)


def chosen_prompts(tail: BoolArray, count: int, seed: int) -> IntArray:
    """Prompts drawn at random: half of them of the tail, as far as it has so many, the rest of the others.

    Args:
        tail: (P,) bool.
        count: at most so many, >= 1.
        seed: of the draw.

    Returns: places of the prompts, rising. Where the others are too few, there are more of the tail.
    """
    random = np.random.default_rng(seed)
    of_tail, others = (random.permutation(np.flatnonzero(of)) for of in (tail, ~tail))
    half = max((count + 1) // 2, count - len(others))
    first = of_tail[:half]
    return np.sort(np.concatenate([first, others[: count - len(first)]]))


def _sizes(seeds: int, samples: int) -> Iterator[tuple[int, int]]:
    """Seeds and samples of each, from the most on."""
    yield from ((seeds, count) for count in range(samples, 0, -1))
    yield from ((count, 1) for count in range(seeds - 1, 0, -1))


def _content(tables: Tables, tail: BoolArray, chosen: IntArray, seeds: int, samples: int) -> dict[str, Any]:
    table, methods = any_table(tables), list(tables)
    first, second = _pair(methods)
    return {
        "methods": [[method, label_of(method)] for method in methods],
        "seeds": list(next(iter(tables.values())))[:seeds],
        "first": methods.index(first),
        "second": methods.index(second),
        "prompts": [
            {
                "text": visible(table.prompts[place]),
                "score": round(float(table.prompt_scores[place]), 2),
                "tail": int(tail[place]),
                "answers": [
                    [
                        [number, round(float(of_seed.scores[place, sample]), 2), visible(text)]
                        for number, of_seed in enumerate(list(by_seed.values())[:seeds])
                        for sample, text in enumerate(of_seed.continuations[place][:samples])
                    ]
                    for by_seed in tables.values()
                ],
            }
            for place in chosen.tolist()
        ],
    }


def _pair(methods: list[str]) -> tuple[str, str]:
    """The methods that are compared at first: the last one that is trained, with RLHF, or with the one before it."""
    trained = [method for method in in_order(methods) if is_trained(method)] or methods
    last = trained[-1]
    others = [method for method in methods if method != last] or [last]
    return last, RLHF if RLHF in others else others[-1]


def _as_json(content: dict[str, Any]) -> str:
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return "".join(_UNSAFE.get(letter, letter) for letter in text)


def _told(shown: tuple[int, int, int], there: tuple[int, int, int], of_tail: int) -> str:
    """What is shown of what is there: prompts, seeds, samples."""
    prompts, seeds, samples = shown
    left = [
        f"{more - less} of {counted(more, noun)}{whose}"
        for less, more, noun, whose in zip(
            shown, there, ("test prompt", "seed", "sample"), ("", "", " of each seed"), strict=True
        )
        if less < more
    ]
    held = (
        f"{counted(prompts, 'prompt')}, {of_tail} of them in the tail; {counted(samples, 'answer')} per prompt, method "
        f"and seed, from {counted(seeds, 'seed')}"
    )
    return f"{held}. Left out: {'; '.join(left) or 'nothing'}."
