"""Data sets of the hub, read at one revision; whatever goes wrong gives one clear line."""

from collections.abc import Iterator, Sequence

from rarlhf.config.errors import UserError
from rarlhf.config.params import DataParams
from rarlhf.data.readers import Located, Record, lacking_columns
from rarlhf.models.hub import fetch_data_set


def hub_records(data: DataParams, split: str, columns: Sequence[str]) -> Iterator[Located]:
    """Yields the records of one split of the data set `data.name` at `data.revision`.

    Args:
        data: section `data`.
        split: the hub's name of the split.
        columns: fields that the records must have.
    Raises: UserError if it cannot be read (name, configuration, revision, split, network) or lacks a column.
    """
    import datasets

    datasets.disable_progress_bars()
    folder = fetch_data_set(str(data.name), data.revision).folder
    try:  # streaming reads the files in place; otherwise `datasets` would store another copy
        rows = datasets.load_dataset(str(folder), data.config, split=split, streaming=True)
        for number, record in enumerate(rows, start=1):
            _require(data, record, columns)
            yield f"{data.name} split {split} row {number}", record
    except UserError:
        raise
    except Exception as error:  # `datasets` and its readers raise errors of many classes
        reason = (str(error).strip().split("\n")[0] or type(error).__name__).replace(str(folder), str(data.name))
        wish = f"data set {data.name} (config {data.config}, split {split}, revision {data.revision})"
        raise UserError(f"{wish} cannot be read: {reason[:200]}; check data.config and data.splits") from error


def hub_origin(data: DataParams) -> dict[str, str]:
    """Name and commit of the data set, as a JSON object; `data.revision` may be a branch, whose commit changes."""
    found = fetch_data_set(str(data.name), data.revision)
    return {"source": "hub", "name": found.name, "commit": found.commit}


def _require(data: DataParams, record: Record, columns: Sequence[str]) -> None:
    lacking = lacking_columns(record, columns)
    if lacking:
        have = ", ".join(record)
        raise UserError(
            f"data set {data.name} lacks the column {', '.join(lacking)}; it has {have}: set data.columns to its names"
        )
