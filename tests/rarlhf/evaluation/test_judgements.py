"""Files of judgements: what is written is read, and what does not fit the generations is refused."""

from pathlib import Path

import numpy as np
import pytest

from rarlhf.config.errors import UserError
from rarlhf.evaluation.generations import Tables
from rarlhf.evaluation.judgements import (
    EMBEDDINGS,
    Judgement,
    Judgements,
    answers_hash,
    read_judgements,
    second_scores,
    write_embeddings,
    write_judgement,
)

SHAPE = (40, 4)


def written(folder: Path, tables: Tables, judgement: Judgement) -> Path:
    for method, by_seed in tables.items():
        for seed in by_seed:
            write_judgement(judgement, folder / method / f"{seed}.safetensors")
    return folder


def test_what_is_written_is_read(tables: Tables, tmp_path: Path) -> None:
    scores, tokens = np.arange(160.0).reshape(SHAPE), np.ones(SHAPE, dtype=np.int64)
    written(tmp_path, tables, Judgement(scores, scores / 2, tokens, scores / 160))
    write_embeddings(np.ones((40, 3)), tmp_path / EMBEDDINGS)
    found = read_judgements(tmp_path, tables)
    assert list(found.methods) == list(tables)
    one = found.methods["rlhf"][2]
    assert one.second_scores is not None and one.tokens is not None
    assert np.array_equal(one.second_scores, scores) and one.tokens.dtype == np.int64
    assert found.embeddings is not None and found.embeddings.shape == (40, 3)
    assert second_scores(found)["sft"].shape == (3, *SHAPE)


def test_equal_judgements_are_equal_bytes(tmp_path: Path) -> None:
    path, contents = tmp_path / "1.safetensors", set()
    for _ in range(20):
        write_judgement(Judgement(np.zeros(SHAPE), toxicity=np.ones(SHAPE)), path, "scorer", "answers")
        contents.add(path.read_bytes())
    assert len(contents) == 1


def test_judges_that_were_not_asked(tables: Tables, tmp_path: Path) -> None:
    found = read_judgements(written(tmp_path, tables, Judgement()), tables)
    assert found.methods["rlhf"][1] == Judgement()
    assert found.embeddings is None
    assert second_scores(found) == {} == second_scores(Judgements({}))


def test_files_that_do_not_fit_are_refused(tables: Tables, tmp_path: Path) -> None:
    folder = written(tmp_path, tables, Judgement(np.zeros(SHAPE)))
    file = folder / "rlhf" / "2.safetensors"
    whole = file.read_bytes()
    refused = {
        "rlhf/2.safetensors is missing or not whole": file.unlink,
        "is missing or not whole": lambda: file.write_bytes(whole[:-9]),
        r"second_scores is of \(39, 4\) answers, and there are \(40, 4\)": lambda: write_judgement(
            Judgement(np.zeros((39, 4))), file
        ),
        "a value of second_scores is not finite": lambda: write_judgement(Judgement(np.full(SHAPE, np.nan)), file),
        "the files differ in what was judged": lambda: write_judgement(Judgement(nll=np.zeros(SHAPE)), file),
        "is of other answers than the generations": lambda: write_judgement(
            Judgement(np.zeros(SHAPE)), file, "", answers_hash(tables["rlhf"][1])
        ),
    }
    for message, spoil in refused.items():
        spoil()
        with pytest.raises(UserError, match=message):
            read_judgements(folder, tables)
    write_judgement(Judgement(np.zeros(SHAPE)), file, "", answers_hash(tables["rlhf"][2]))
    prompts = SHAPE[0]
    for message, embeddings in (
        ("prompts.safetensors is of 39 prompts, and there are 40", np.zeros((prompts - 1, 3))),
        ("an embedding is not finite", np.full((prompts, 3), np.nan)),
    ):
        write_embeddings(embeddings, folder / EMBEDDINGS)
        with pytest.raises(UserError, match=message):
            read_judgements(folder, tables)
