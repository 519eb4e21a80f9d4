"""Stage `download`: the rows of the run in one form, from any source."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rarlhf.data.enough import refuse_too_few
from rarlhf.data.sources import load_raw_rows
from rarlhf.system.files import write_json, write_jsonl
from tasks.running.stage import Run, stage


@stage
def download(run: Run, inputs: Path, out: Path) -> None:
    """Load the rows, choose some, and set the second scorer's rows aside; DVC reruns this when `inputs` changes."""
    rows = load_raw_rows(run.params.data)
    counts = {split: count.record() for split, count in rows.counts.items()}
    for split, count in counts.items():
        run.log(counts_line(split, count))
    # Not params of this stage: another number of queries fetches nothing again, and stage `prompts` checks too.
    refuse_too_few(rows.train, rows.test, run.params.prompts)
    with run.output(out) as folder:
        for name in ("train", "test", "second_scorer"):
            write_jsonl(folder / f"{name}.jsonl", (row.record() for row in getattr(rows, name)))
        write_json(folder / "counts.json", counts)
        if rows.origin is not None:
            write_json(folder / "source.json", rows.origin)


def counts_line(split: str, count: Mapping[str, Any]) -> str:
    """One line of text for one split's counts."""
    dropped = "; ".join(f"{number:,} {reason}" for reason, number in count["dropped"].items())
    return f"{split}: {count['read']:,} rows read, {count['used']:,} used, dropped: {dropped or 'none'}"


if __name__ == "__main__":
    download()
