"""What the judges say of generations, as arrays: what stage `judge` writes and stage `evaluate` reads.

Letters for shapes: P test prompts, k samples per prompt, H width of an embedding.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from rarlhf.config.errors import UserError
from rarlhf.evaluation.generations import FloatArray, Generations, IntArray, Tables

EMBEDDINGS = "prompts.safetensors"  # file of the prompts' embeddings
KNOWN_BY = "known_by"  # the one key of a file's metadata: of several, safetensors writes the order at random
SECOND_SCORER, ANSWERS = "second_scorer", "answers"  # keys in its JSON: by what scorer and answers are known again
AGAIN = "run `dvc repro judge` again"
NO_SECOND_SCORER = "has no second scorer"


@dataclass(frozen=True)
class Judgement:
    """What the judges say of one model's generations; None where there is no such judge."""

    second_scores: FloatArray | None = None  # (P, k) score of prompt + continuation by the second scorer
    nll: FloatArray | None = None  # (P, k) nats under the language model, summed over the continuation's tokens
    tokens: IntArray | None = None  # (P, k) the continuation's tokens by the language model's tokenizer
    toxicity: FloatArray | None = None  # (P, k) probability of the unwanted class


@dataclass(frozen=True)
class Judgements:
    """What the judges say of all generations."""

    methods: Mapping[str, Mapping[int, Judgement]]  # method -> seed -> judgement
    embeddings: FloatArray | None = None  # (P, H) of the prompts


NO_JUDGEMENTS = Judgements({})  # where no judge was asked


def second_scores(judgements: Judgements) -> dict[str, FloatArray]:
    """Method -> (S, P, k) scores by the second scorer, seeds in their order; empty where there is none."""
    found = {method: [judged.second_scores for judged in by.values()] for method, by in judgements.methods.items()}
    return {
        method: np.stack([scores for scores in by_seed if scores is not None])
        for method, by_seed in found.items()
        if all(scores is not None for scores in by_seed)
    }


def answers_hash(table: Generations) -> str:
    """SHA-256 of the prompts and continuations of one model."""
    return hashlib.sha256(json.dumps([table.prompts, table.continuations]).encode()).hexdigest()


def write_judgement(judgement: Judgement, path: Path, second_scorer: str = "", answers: str = "") -> None:
    """Writes one judgements/METHOD/SEED.safetensors: float32, and int32 for counts.

    Args:
        judgement: what is written.
        path: of the file.
        second_scorer: by what the second scorer is known again; empty if there is none.
        answers: `answers_hash` of what was judged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    fields = {name: value for name, value in vars(judgement).items() if value is not None}
    arrays = {name: value.astype(np.int32 if name == "tokens" else np.float32) for name, value in fields.items()}
    known_by = json.dumps({SECOND_SCORER: second_scorer, ANSWERS: answers})
    save_file(arrays, path, metadata={KNOWN_BY: known_by})


def write_embeddings(embeddings: FloatArray, path: Path) -> None:
    """Writes the prompts' embeddings, in float32."""
    save_file({"embeddings": np.ascontiguousarray(embeddings, dtype=np.float32)}, path)


def read_judgements(folder: Path, tables: Tables) -> Judgements:
    """Reads what stage `judge` wrote of these generations.

    Args:
        folder: METHOD/SEED.safetensors, and the prompts' embeddings where there is a language model.
        tables: the generations.

    Raises: UserError if a file is missing or broken, is of other generations, or the files differ in their judges.
    """
    found = {
        method: {seed: _read(folder / method / f"{seed}.safetensors", table)[0] for seed, table in by.items()}
        for method, by in tables.items()
    }
    asked = {frozenset(_present(judgement)) for by_seed in found.values() for judgement in by_seed.values()}
    if len(asked) > 1:
        raise UserError(f"{folder}: the files differ in what was judged: {AGAIN}")
    return Judgements(
        found, _embeddings(folder / EMBEDDINGS, len(next(iter(next(iter(tables.values())).values())).prompts))
    )


@dataclass(frozen=True)
class SecondOpinions:
    """What the second scorer says of one method in a run.

    Attributes:
        by_seed: seed -> judgement with the second scores alone; empty if something is lacking.
        scorer: by what the scorer is known again.
        lacking: why there is nothing, such as `NO_SECOND_SCORER`; else empty.
    """

    by_seed: Mapping[int, Judgement]
    scorer: str
    lacking: str


def read_second_opinions(folder: Path, by_seed: Mapping[int, Generations]) -> SecondOpinions:
    """Reads the second scorer's part of one method's judgements.

    Args:
        folder: SEED.safetensors.
        by_seed: the method's generations.

    Raises: UserError if a file is broken.
    """
    found, scorers = {}, set()
    for seed, table in by_seed.items():
        path = folder / f"{seed}.safetensors"
        if not path.is_file():
            return SecondOpinions({}, "", "lacks judgements")
        try:
            judgement, scorer = _read(path, table)
        except StaleError:
            return SecondOpinions({}, "", "has judgements of other answers")
        if judgement.second_scores is None:
            return SecondOpinions({}, "", NO_SECOND_SCORER)
        found[seed] = Judgement(judgement.second_scores)
        scorers.add(scorer)
    if len(scorers) != 1 or not all(scorers):
        return SecondOpinions({}, "", "was not judged by one second scorer")
    return SecondOpinions(found, scorers.pop(), "")


class StaleError(UserError):
    """A judgement of other answers."""


def _present(judgement: Judgement) -> list[str]:
    return [name for name, value in vars(judgement).items() if value is not None]


def _read(path: Path, table: Generations) -> tuple[Judgement, str]:
    """The judgement, and by what its second scorer is known again."""
    try:
        fields = load_file(path)
        with safe_open(path, "np") as file:
            known_by = json.loads((file.metadata() or {}).get(KNOWN_BY, "{}"))
    except (FileNotFoundError, SafetensorError) as error:
        raise UserError(f"{path} is missing or not whole ({error}): {AGAIN}") from error
    shape, answers = table.scores.shape, known_by.get(ANSWERS)
    if answers and answers != answers_hash(table):
        raise StaleError(f"{path} is of other answers than the generations: {AGAIN}")
    for name, values in fields.items():
        if values.shape != shape:
            raise StaleError(f"{path}: {name} is of {values.shape} answers, and there are {shape}: {AGAIN}")
        if not np.isfinite(values).all():
            raise UserError(f"{path}: a value of {name} is not finite: check section judge of params.yaml")
    tokens = fields.pop("tokens", None)
    judgement = Judgement(
        **{name: values.astype(np.float64) for name, values in fields.items()},
        tokens=None if tokens is None else tokens.astype(np.int64),
    )
    return judgement, known_by.get(SECOND_SCORER, "")


def _embeddings(path: Path, prompts: int) -> FloatArray | None:
    if not path.is_file():
        return None
    try:
        found = load_file(path)["embeddings"].astype(np.float64)
    except (KeyError, SafetensorError) as error:
        raise UserError(f"{path} is not whole ({error}): {AGAIN}") from error
    if found.ndim != 2 or len(found) != prompts:
        raise UserError(f"{path} is of {len(found)} prompts, and there are {prompts}: {AGAIN}")
    if not np.isfinite(found).all():
        raise UserError(f"{path}: an embedding is not finite: check judge.language_model of params.yaml")
    return found
