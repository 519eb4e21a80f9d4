"""Utility and win rates among the metrics, in the tables, and nothing where nothing was measured."""

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from rarlhf.config.errors import UserError
from rarlhf.evaluation.comparisons import Evaluation, compare_methods
from rarlhf.evaluation.exports import markdown_table
from rarlhf.evaluation.further import over_prompts, with_preferences, with_utility
from rarlhf.evaluation.generations import Tables
from rarlhf.evaluation.preference import Preferences
from rarlhf.evaluation.preferences_file import PREFERENCES, read_preferences, write_preferences
from rarlhf.evaluation.tables import utility_columns, utility_notes
from rarlhf.utility.results import TaskResult, Utility

WINS = {"base": [0, 0, 0, 1], "rlhf": [1, 1, 0.5, 0.5], "ra_rlhf": [1, 0.5, 0, 0.5]}


@pytest.fixture
def evaluation(tables, perplexities, params) -> Evaluation:
    return compare_methods(tables, perplexities, params)


@pytest.fixture
def found(tables: Tables) -> Preferences:
    ids = list(next(iter(tables["sft"].values())).prompt_ids[:4])
    return Preferences(
        "sft", list(map(int, ids)), {m: {s: np.array(w, dtype=float) for s in (1, 2, 3)} for m, w in WINS.items()}
    )


def test_nothing_measured_changes_nothing(evaluation: Evaluation, params) -> None:
    assert with_utility(evaluation, {}) is evaluation
    assert with_preferences(evaluation, None) is evaluation
    assert utility_columns(evaluation) == {} and utility_notes(evaluation) == []
    assert "**Utility**" not in markdown_table(evaluation, params.evaluate)


def test_utility_stands_among_the_metrics(evaluation: Evaluation, params) -> None:
    own = {seed: Utility(0.5 + seed / 10, {"boolq": TaskResult(0.7, 0.1, 20)}) for seed in (1, 2, 3)}
    some = {1: Utility(0.5, {"boolq": TaskResult(0.5, 0.1, 20)}), 2: Utility(0.5), 3: Utility(0.5)}
    whole = with_utility(evaluation, {"sft": own, "rlhf": some})
    assert whole["methods"]["sft"]["classification_auc"]["per_seed"] == [0.6, 0.7, 0.8]
    assert whole["methods"]["sft"]["utility_boolq"]["mean"] == 0.7
    assert "utility_boolq" not in whole["methods"]["rlhf"]  # some seed does not have it
    assert set(whole["methods"]["base"]) == set(evaluation["methods"]["base"])
    assert utility_columns(whole) == {"classification_auc": "classification AUC", "utility_boolq": "boolq"}
    text = markdown_table(whole, params.evaluate)
    assert "**Utility**\n\n| method | classification AUC | boolq |\n" in text
    assert "| SFT | 0.70 ±0.25 | 0.70 |\n| RLHF | 0.50 | – |" in text
    assert "A rule of decoding has no model" in text and "Win rate" not in text


def test_win_rates_have_intervals_over_prompts(evaluation: Evaluation, found: Preferences, params) -> None:
    whole = with_preferences(evaluation, found)
    assert "win_rate" not in whole["methods"]["sft"]
    assert whole["methods"]["rlhf"]["win_rate"]["per_seed"] == [0.75] * 3
    section = whole["preference"]
    assert (section["against"], section["prompts"]) == ("sft", 4)
    assert {key: section["methods"]["ra_rlhf"][key] for key in ("wins", "losses", "ties")} == {
        "wins": 3, "losses": 3, "ties": 6,
    }  # fmt: skip
    low, high = section["methods"]["rlhf"]["interval"]
    half = stats.t.ppf(0.975, 3) * np.std(WINS["rlhf"], ddof=1) / 2
    assert (low, high) == pytest.approx((0.75 - half, 1.0))  # cut at 1
    text = markdown_table(whole, params.evaluate)
    assert "| method | win rate |" in text and "| SFT | – |" in text
    assert f"RLHF 0.75 [{low:.2f}, 1.00], 6 wins, 6 ties, 0 losses" in text
    assert "Win rate over SFT on 4 test prompts" in text and "A rule of decoding" not in text


def test_an_interval_needs_two_prompts() -> None:
    assert over_prompts(np.array([[1.0], [0.5]]), 0.95) is None
    assert over_prompts(np.array([[1.0, 0.0], [1.0, 0.0]]), 0.95) == [0.0, 1.0]


def test_verdicts_that_are_written_are_read(tables: Tables, found: Preferences, tmp_path: Path) -> None:
    path = tmp_path / PREFERENCES
    assert read_preferences(path, tables) is None
    write_preferences(found, tables, path)
    first = path.read_bytes()
    again = read_preferences(path, tables)
    assert again is not None and list(again.prompt_ids) == list(found.prompt_ids)
    assert [again.verdicts["rlhf"][seed].tolist() for seed in (1, 2, 3)] == [WINS["rlhf"]] * 3
    write_preferences(again, tables, path)
    assert path.read_bytes() == first
    others = {**tables, "rlhf": {**tables["rlhf"], 1: tables["rlhf"][2]}}
    with pytest.raises(UserError, match="is of other answers than the generations: run `dvc repro judge` again"):
        read_preferences(path, others)
    text = first.decode()
    for spoilt in (text[:-9], "[]", text.replace("0.5", "0.4"), text.replace("against", "with")):
        path.write_text(spoilt)
        with pytest.raises(UserError, match="is not whole"):
            read_preferences(path, tables)
