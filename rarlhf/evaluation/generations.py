"""Generation files as arrays: one table per method and seed, checked here so that all later code can compare them.

Letters for shapes: P test prompts, k samples per prompt.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NotRequired, TypedDict, cast

import numpy as np
from numpy.typing import NDArray

from rarlhf.config.errors import UserError
from rarlhf.system.files import read_jsonl

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


class Continuation(TypedDict):
    """One line of generations/METHOD/SEED.jsonl: one continuation of one test prompt."""

    prompt_id: int
    prompt: str
    prompt_score: float  # score of the prompt alone
    label: int | None  # 1 = the prompt comes from a text of the wanted class; None: not known
    sample: int  # 0 to k - 1
    continuation: str
    tokens: int  # response tokens, the end of text included
    score: float  # score of prompt + continuation
    kl_sft: float  # nats: log pi(y|x) - log pi_sft(y|x), summed over the response
    draws: NotRequired[int]  # responses that a rule drew for this one


@dataclass(frozen=True)
class Generations:
    """All continuations of one model and seed, prompts by ascending id, samples by number."""

    prompt_ids: IntArray  # (P,)
    prompts: tuple[str, ...]  # P texts
    prompt_scores: FloatArray  # (P,) score of each prompt alone
    continuations: tuple[tuple[str, ...], ...]  # P times k texts
    scores: FloatArray  # (P, k) score of prompt + continuation, higher is better
    kl: FloatArray  # (P, k) nats against the SFT model, summed over the response
    tokens: IntArray  # (P, k) response tokens
    draws: IntArray | None = None  # (P, k) responses that were drawn for each; None: one


Tables = Mapping[str, Mapping[int, Generations]]  # method -> seed -> generations


def to_generations(rows: Iterable[Continuation], where: str) -> Generations:
    """Arrange rows in any order as arrays.

    Args:
        rows: every sample of every prompt, each once.
        where: name of the file, for errors.

    Returns: the table; row order has no influence.

    Raises: UserError if there is no row, a number is not finite, prompts differ in their samples, or the samples of one
        are of different prompts; TypeError or ValueError if a value is not of its kind.
    """
    ordered = sorted(rows, key=lambda row: (row["prompt_id"], row["sample"]))
    if not ordered:
        raise UserError(f"{where} holds no generations: run its stage `generate` again")
    groups: dict[int, list[Continuation]] = {}
    for row in ordered:
        groups.setdefault(row["prompt_id"], []).append(row)
    samples = list(range(len(next(iter(groups.values())))))
    for prompt_id, group in groups.items():
        if [row["sample"] for row in group] != samples:
            raise UserError(
                f"{where}: prompt {prompt_id} has samples {[row['sample'] for row in group]}, expected {samples} "
                "for every prompt: run its stage `generate` again"
            )
        _check_kinds(group)
        if len({(row["prompt"], repr(row["prompt_score"])) for row in group}) > 1:  # repr: NaN is refused below
            raise UserError(
                f"{where}: the samples of prompt {prompt_id} are of different prompts: run its stage `generate` again"
            )
    return _arrays(groups, where)


def _check_kinds(group: Sequence[Continuation]) -> None:
    """Raises TypeError for a text that is no text, or a count of tokens that is no count; arrays check the numbers."""
    for row in group:
        kinds = {
            "prompt": isinstance(row["prompt"], str),
            "continuation": isinstance(row["continuation"], str),
            "tokens": isinstance(row["tokens"], int) and row["tokens"] >= 0,
        }
        for name, right in kinds.items():
            if not right:
                raise TypeError(f"{name} of prompt {row['prompt_id']} is {cast(dict[str, object], row)[name]!r}")


def _arrays(groups: Mapping[int, Sequence[Continuation]], where: str) -> Generations:
    first = [group[0] for group in groups.values()]
    table = Generations(
        prompt_ids=np.array([row["prompt_id"] for row in first], dtype=np.int64),
        prompts=tuple(row["prompt"] for row in first),
        prompt_scores=np.array([row["prompt_score"] for row in first], dtype=np.float64),
        continuations=tuple(tuple(row["continuation"] for row in group) for group in groups.values()),
        scores=np.array([[row["score"] for row in group] for group in groups.values()], dtype=np.float64),
        kl=np.array([[row["kl_sft"] for row in group] for group in groups.values()], dtype=np.float64),
        tokens=np.array([[row["tokens"] for row in group] for group in groups.values()], dtype=np.int64),
        draws=_draws(groups),
    )
    for name, values in (("prompt_score", table.prompt_scores), ("score", table.scores), ("kl_sft", table.kl)):
        if not np.isfinite(values).all():
            raise UserError(f"{where}: a {name} is not finite: the model diverged; lower ppo.lr or raise kl.coef")
    return table


def _draws(groups: Mapping[int, Sequence[Continuation]]) -> IntArray | None:
    if "draws" not in next(iter(groups.values()))[0]:
        return None
    return np.array([[row["draws"] for row in group] for group in groups.values()], dtype=np.int64)


def read_generations(path: Path) -> Generations:
    """Read one generations/METHOD/SEED.jsonl.

    Raises: UserError if the file is missing, not JSON lines, lacks a field, or is refused by `to_generations`.
    """
    where = f"{path.parent.name}/{path.name}"
    try:
        return to_generations([cast(Continuation, record) for record in read_jsonl(path)], where)
    except FileNotFoundError:
        raise UserError(f"generations of {where} are missing: run stage `generate` for this method") from None
    except (KeyError, TypeError, ValueError) as error:  # ValueError: no JSON, no UTF-8, or no number
        raise UserError(f"{where} is not a file of generations ({error}): run its stage `generate` again") from None


def read_tables(folder: Path, methods: Sequence[str], seeds: Sequence[int]) -> Tables:
    """Read generations/METHOD/SEED.jsonl of every method and seed and check that they answer the same prompts.

    Raises: UserError if a file is missing or broken, or the files differ in prompts, their scores or the sample count.
    """
    tables = {m: {seed: read_generations(folder / m / f"{seed}.jsonl") for seed in seeds} for m in methods}
    check_comparable(tables)
    return tables


def check_comparable(tables: Tables) -> None:
    """Refuse to compare models with different seeds, prompts or numbers of samples.

    Differences are paired by seed; tail measures depend on prompts and samples.

    Raises: UserError naming the first method or table that differs from the first one.
    """
    first_method, *others = tables
    for method in others:
        if list(tables[method]) != list(tables[first_method]):
            seeds, expected = (", ".join(map(str, tables[name])) for name in (method, first_method))
            raise UserError(
                f"generations: {method} has seeds {seeds} and {first_method} has {expected}: run stage `generate` again"
            )
    flat = [(f"{method}/{seed}", table) for method, by_seed in tables.items() for seed, table in by_seed.items()]
    first_name, first = flat[0]
    for name, table in flat[1:]:
        same = (
            table.scores.shape == first.scores.shape
            and table.prompts == first.prompts
            and np.array_equal(table.prompt_ids, first.prompt_ids)
            and np.array_equal(table.prompt_scores, first.prompt_scores)
        )
        if not same:
            raise UserError(
                f"generations {name} and {first_name} do not answer the same prompts equally often "
                f"({table.scores.shape} and {first.scores.shape}): run stage `generate` for all methods again"
            )


def stacked(by_seed: Mapping[int, Generations], field: str) -> FloatArray:
    """One field of all seeds of a method: (S, P, k) float, seeds in their order."""
    return np.stack([np.asarray(getattr(table, field), dtype=np.float64) for table in by_seed.values()])
