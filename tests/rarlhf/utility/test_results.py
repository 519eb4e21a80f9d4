"""Files of utility: what is written is read, and what is not whole is refused."""

from pathlib import Path

import pytest

from rarlhf.config.errors import UserError
from rarlhf.utility.results import TaskResult, Utility, read_utility, write_utility

FOUND = {
    1: Utility(0.75, {"boolq": TaskResult(0.5, 0.1, 20), "mmlu": TaskResult(0.25, None, 1)}),
    2: Utility(0.5, {"boolq": TaskResult(0.25, 0.1, 20), "mmlu": TaskResult(0.25, None, 1)}),
}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write_utility(FOUND, tmp_path / "sft.json")
    write_utility({seed: Utility(0.5) for seed in (1, 2)}, tmp_path / "other.json")
    assert read_utility(tmp_path, ["base", "sft"], [1, 2]) == {"sft": FOUND}
    assert FOUND[1].metrics == {"classification_auc": 0.75, "utility_boolq": 0.5, "utility_mmlu": 0.25}
    assert Utility().metrics == {}
    assert read_utility(tmp_path / "nowhere", ["sft"], [1]) == {}


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "sft.json"
    write_utility(FOUND, path)
    whole = path.read_text()
    with pytest.raises(UserError, match=r"is of seeds 1, 2, and the run has others: run `dvc repro utility` again"):
        read_utility(tmp_path, ["sft"], [1, 3])
    for text in (whole[:-9], "[]", "{}", '{"seeds": {"1": {}}}', whole.replace("accuracy", "right")):
        path.write_text(text)
        with pytest.raises(UserError, match="is not whole"):
            read_utility(tmp_path, ["sft"], [1, 2])
