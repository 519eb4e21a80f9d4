"""Checks of the folders that commands read and write, made before anything slow is imported."""

import os
from pathlib import Path

from rarlhf.config.errors import UserError
from rarlhf.models.files import (
    CONFIG,
    TOKENIZER,
    adapter_weights,
    base_of,
    is_adapter,
    json_object,
    pickled_files,
    weight_files,
)

SHOWN = 6  # folders that an error lists


def refuse_no_language_model(folder: Path, base: Path | None) -> None:
    """Refuses a folder that cannot generate text: no model, a classifier, an adapter without its base, a needless base.

    Args:
        folder: of a whole model or an adapter.
        base: folder of an adapter's base model, if it is not the one that the adapter names.
    Raises: UserError.
    """
    if is_adapter(folder):
        _refuse_no_adapter(folder, base)
        return
    _refuse_no_model(folder, "name a model's, such as models/ra_rlhf/1", f"neither {CONFIG} nor adapter_config.json")
    if any(name.endswith("ForSequenceClassification") for name in architectures(folder)):
        raise UserError(f"{folder} holds a classifier, which writes nothing; `rarlhf score --reward {folder}` uses it")
    if base is not None:
        raise UserError(f"--base {base}: {folder} is a whole model, which has no base; leave --base out")


def refuse_no_merge(folder: Path, out: Path, base: Path | None) -> None:
    """Refuses what `rarlhf merge` cannot do.

    Args:
        folder: of an adapter.
        out: folder to make.
        base: as in `refuse_no_language_model`.
    Raises: UserError.
    """
    refuse_taken(out)
    _refuse_no_adapter(folder, base)


def refuse_no_classifier(folder: Path) -> None:
    """Refuses a folder that cannot score: no model, or an adapter. A language model is refused when it is loaded.

    Raises: UserError.
    """
    if is_adapter(folder):
        raise UserError(f"{folder} holds an adapter, which gives no scores; name the folder of a whole classifier")
    _refuse_no_model(folder, "name a classifier's", f"no {CONFIG}")


def refuse_no_head(folder: Path) -> None:
    """Refuses a folder without a head R(prefix, token). Whether it fits the model is found when it is loaded.

    Raises: UserError.
    """
    _refuse_no_model(folder, "name a head's, such as models/good/1", f"no {CONFIG}")
    if architectures(folder) != ["GPT2LMHeadModel"] or (folder / TOKENIZER).is_file():
        raise UserError(f"{folder} holds a model, and a head is needed: name a folder that stage head wrote")


def refuse_no_conversion(source: str, out: Path, revision: str | None) -> None:
    """Refuses what `rarlhf convert` cannot do; a source that is not a folder may be on the hub.

    Raises: UserError.
    """
    refuse_taken(out)
    folder = Path(source)
    if folder.is_file():
        raise UserError(f"{source} is a file; name the folder that it is in")
    if not folder.is_dir():
        return
    if revision is not None:
        raise UserError(f"--revision {revision}: {source} is a local folder, which has none; leave --revision out")
    refuse_nothing_pickled(source, folder)


def refuse_nothing_pickled(source: str, folder: Path) -> None:
    """Refuses a folder without pickled weights.

    Raises: UserError.
    """
    if not pickled_files(folder):
        have = "it has safetensors already" if weight_files(folder) else "it has no pytorch_model.bin"
        raise UserError(f"{source} has nothing to convert: {have}")


def architectures(folder: Path) -> list[str]:
    """Names of the model classes in a folder's configuration; none if it names none.

    Raises: UserError if its configuration is not JSON.
    """
    names = json_object(folder / CONFIG).get("architectures")
    return [str(name) for name in names] if isinstance(names, list) else []


def _refuse_no_adapter(folder: Path, base: Path | None) -> None:
    adapter_weights(folder)
    if base is None:
        base_of(folder)
    elif not (base / CONFIG).is_file():
        raise UserError(f"{base} is not a folder of a base model: it has no {CONFIG}")


def _refuse_no_model(folder: Path, hint: str, lacks: str) -> None:
    if folder.is_file():
        raise UserError(f"{folder} is a file; name the folder that it is in")
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; {hint}")
    if not os.access(folder, os.R_OK | os.X_OK):
        raise UserError(f"{folder} cannot be read: permission denied; ask its owner, or copy it")
    if not (folder / CONFIG).is_file():
        inside = sorted({path.parent.name for path in folder.glob("*/*config.json")})
        shown = ", ".join(inside[:SHOWN]) + (f" and {len(inside) - SHOWN} more" if inside[SHOWN:] else "")
        more = f"; name one of the folders in it: {shown}" if inside else f"; {hint}"
        raise UserError(f"{folder} holds no model: it has {lacks}{more}")


def refuse_taken(out: Path) -> None:
    """Refuses a file, a folder that is not empty, and a place where no folder can be made.

    Raises: UserError.
    """
    if out.is_dir() and any(out.iterdir()):
        raise UserError(f"{out} is not empty; name a folder that is not there yet")
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; name a folder that is not there yet")
    above = next(parent for parent in out.absolute().parents if parent.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        reason = "you may not write there" if above.is_dir() else f"{above} is a file"
        raise UserError(f"{out} cannot be made: {reason}; name another place")
