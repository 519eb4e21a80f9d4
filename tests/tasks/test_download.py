"""Stages `source` and `download`, with a run that only notes what is logged."""

import json
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from rarlhf.config.errors import UserError
from rarlhf.data.rows import read_rows
from tasks.download import counts_line, download
from tasks.source import source


def noting_run(params):
    lines = []

    @contextmanager
    def output(path: Path):
        (path.parent if path.suffix else path).mkdir(parents=True, exist_ok=True)
        yield path

    return SimpleNamespace(params=params, log=lines.append, output=output, lines=lines)


def test_download_writes_the_rows_and_what_was_dropped(params, workspace):
    run = noting_run(params)
    download.__wrapped__(run, workspace, workspace / "raw")
    rows = {name: read_rows(workspace / "raw" / f"{name}.jsonl") for name in ("train", "test", "second_scorer")}
    counts = json.loads((workspace / "raw" / "counts.json").read_text())
    assert len(rows["train"]) == counts["train"]["used"]
    assert len(rows["test"]) == counts["test"]["used"] == params.data.test_rows
    assert len(rows["second_scorer"]) == params.data.second_scorer_rows
    assert len(run.lines) == 2


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"train": 12_001, "validation": 1},
            r"prompts.train = 12001, prompts.validation = 1: only [\d,]+ of [\d,]+ train",
        ),
        ({"test": 2001}, "prompts.test = 2001: only 2,000 of 2,000 test rows"),
        (
            {"train": 9, "validation": 1, "test": 2000, "min_chars": 120},
            r"prompts.test = 2000: only [\d,]+ of 2,000 test rows have prompts.min_chars = 120",
        ),
    ],
)
def test_rows_that_are_too_few_are_refused_before_anything_is_trained(values, message, params, workspace):
    prompts = params.prompts.model_copy(update={"min_chars": 0} | values)
    run = noting_run(params.model_copy(update={"prompts": prompts}))
    with pytest.raises(UserError, match=message):
        download.__wrapped__(run, workspace, workspace / "raw")
    assert not (workspace / "raw").exists()


def test_counts_in_words():
    dropped = {"empty text": 3, "text also in test": 1200}
    line = counts_line("train", {"read": 5203, "used": 4000, "dropped": dropped})
    assert line == "train: 5,203 rows read, 4,000 used, dropped: 3 empty text; 1,200 text also in test"
    assert counts_line("test", {"read": 2, "used": 2, "dropped": {}}) == "test: 2 rows read, 2 used, dropped: none"


def test_source_writes_the_fingerprint(params, workspace):
    source.__wrapped__(noting_run(params), workspace / "inputs" / "source.json")
    assert json.loads((workspace / "inputs" / "source.json").read_text()) == {"source": "generator"}
