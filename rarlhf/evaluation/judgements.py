"""What the judges say of generations, as arrays: what stage `judge` writes and stage `evaluate` reads.

Letters for shapes: P test prompts, k samples per prompt, H width of an embedding.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from rarlhf.config.errors import UserError
from rarlhf.evaluation.generations import FloatArray, Generations, IntArray, Tables

EMBEDDINGS = "prompts.safetensors"  # file of the prompts' embeddings
SECOND_SCORER = "second_scorer"  # key of the second scorer's hash in a file's metadata
AGAIN = "run `dvc repro judge` again"


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


def write_judgement(judgement: Judgement, path: Path, second_scorer: str = "") -> None:
    """Writes one judgements/METHOD/SEED.safetensors: float32, and int32 for counts.

    Args:
        judgement: what is written.
        path: of the file.
        second_scorer: hash of the second scorer, by which `rarlhf compare` knows it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    fields = {name: value for name, value in vars(judgement).items() if value is not None}
    arrays = {name: value.astype(np.int32 if name == "tokens" else np.float32) for name, value in fields.items()}
    save_file(arrays, path, metadata={SECOND_SCORER: second_scorer})


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
        method: {seed: _read(folder / method / f"{seed}.safetensors", table.scores.shape) for seed, table in by.items()}
        for method, by in tables.items()
    }
    asked = {frozenset(_present(judgement)) for by_seed in found.values() for judgement in by_seed.values()}
    if len(asked) > 1:
        raise UserError(f"{folder}: the files differ in what was judged: {AGAIN}")
    return Judgements(found, _embeddings(folder / EMBEDDINGS))


def read_second_opinions(folder: Path, by_seed: Mapping[int, Generations]) -> tuple[dict[int, Judgement], str]:
    """The second scorer's part of one method's judgements by seed, and the scorer's hash; empty if there is none.

    Args:
        folder: SEED.safetensors.
        by_seed: the method's generations.

    Raises: UserError if a file is missing or broken, or is of other generations.
    """
    if not folder.is_dir():
        return {}, ""
    found = {}
    for seed, table in by_seed.items():
        path = folder / f"{seed}.safetensors"
        found[seed] = Judgement(_read(path, table.scores.shape).second_scores)
        with safe_open(path, "np") as file:
            scorer = (file.metadata() or {}).get(SECOND_SCORER, "")
    return (found, scorer) if scorer else ({}, "")


def _present(judgement: Judgement) -> list[str]:
    return [name for name, value in vars(judgement).items() if value is not None]


def _read(path: Path, shape: tuple[int, ...]) -> Judgement:
    try:
        fields = load_file(path)
    except (FileNotFoundError, SafetensorError) as error:
        raise UserError(f"{path} is missing or not whole ({error}): {AGAIN}") from error
    for name, values in fields.items():
        if values.shape != shape:
            raise UserError(f"{path}: {name} is of {values.shape} answers, and there are {shape}: {AGAIN}")
        if not np.isfinite(values).all():
            raise UserError(f"{path}: a value of {name} is not finite: check section judge of params.yaml")
    tokens = fields.pop("tokens", None)
    return Judgement(
        **{name: values.astype(np.float64) for name, values in fields.items()},
        tokens=None if tokens is None else tokens.astype(np.int64),
    )


def _embeddings(path: Path) -> FloatArray | None:
    if not path.is_file():
        return None
    try:
        return load_file(path)["embeddings"].astype(np.float64)
    except (KeyError, SafetensorError) as error:
        raise UserError(f"{path} is not whole ({error}): {AGAIN}") from error
