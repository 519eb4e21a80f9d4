"""judgements/preferences.json: what stage `judge` writes and stage `evaluate` reads of the compared answers."""

import json
from pathlib import Path

import numpy as np

from rarlhf.config.errors import UserError
from rarlhf.evaluation.generations import Tables
from rarlhf.evaluation.judgements import AGAIN, answers_hash
from rarlhf.evaluation.preference import LOSS, TIE, WIN, Preferences
from rarlhf.system.files import write_json

PREFERENCES = "preferences.json"  # in the folder of judgements; missing where no judge compares


def write_preferences(found: Preferences, tables: Tables, path: Path) -> None:
    """Writes the verdicts, and by what the answers are known again."""
    write_json(
        path,
        {
            "against": found.against,
            "prompts": list(found.prompt_ids),
            "verdicts": {
                method: {str(seed): values.tolist() for seed, values in by_seed.items()}
                for method, by_seed in found.verdicts.items()
            },
            "answers": _answers(tables),
        },
    )


def read_preferences(path: Path, tables: Tables) -> Preferences | None:
    """The verdicts on these generations; None where there is no file.

    Raises: UserError if the file is broken, or of other answers.
    """
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        answers = values["answers"]
        verdicts = {
            method: {int(seed): np.array(some, dtype=np.float64) for seed, some in by_seed.items()}
            for method, by_seed in values["verdicts"].items()
        }
        found = Preferences(values["against"], values["prompts"], verdicts)
        shapes = {array.shape for by_seed in verdicts.values() for array in by_seed.values()}
        known = all(np.isin(array, (WIN, TIE, LOSS)).all() for some in verdicts.values() for array in some.values())
        if shapes != {(len(found.prompt_ids),)} or not known:
            raise ValueError("verdicts that do not fit the prompts")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is not whole ({error}): {AGAIN}") from error
    if answers != _answers(tables):
        raise UserError(f"{path} is of other answers than the generations: {AGAIN}")
    return found


def _answers(tables: Tables) -> dict[str, dict[str, str]]:
    return {m: {str(seed): answers_hash(table) for seed, table in by_seed.items()} for m, by_seed in tables.items()}
