"""Data sets of the hub: read at one revision, and one clear line for whatever can be wrong with the wish."""

from collections.abc import Iterator, Sequence

from rarlhf.data.readers import Located, lacking_columns
from rarlhf.errors import UserError
from rarlhf.params import DataParams

INSTEAD = "Without network: put train.jsonl and test.jsonl into a folder and set data.source: file and data.path to it"


def hub_records(data: DataParams, split: str, columns: Sequence[str]) -> Iterator[Located]:
    """Yields the records of one split of the data set `data.name` at `data.revision`.

    Args:
        data: section `data`.
        split: the hub's name of the split.
        columns: fields that the records must have.
    Raises: UserError if it cannot be had (name, configuration, revision, split, network) or lacks a column.
    """
    import datasets

    try:
        rows = datasets.load_dataset(data.name, data.config, split=split, revision=data.revision)
    except (OSError, ValueError, RuntimeError) as error:  # what datasets and the hub client raise, offline too
        raise UserError(_refusal(data, split, error)) from error
    lacking = lacking_columns(rows.column_names, columns)
    if lacking:
        have = ", ".join(rows.column_names)
        raise UserError(
            f"data set {data.name} lacks the column {', '.join(lacking)}; it has {have}: set data.columns to its names"
        )
    for number, record in enumerate(rows, start=1):
        yield f"{data.name} split {split} row {number}", record


def _refusal(data: DataParams, split: str, error: Exception) -> str:
    reason = str(error).strip().split("\n")[0] or type(error).__name__
    wish = f"data set {data.name} (config {data.config}, split {split}, revision {data.revision})"
    return f"{wish} could not be loaded from the hub ({reason}). {INSTEAD}"
