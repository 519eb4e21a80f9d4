"""Runs that were not tested alike are refused in one line that says in what they differ."""

from pathlib import Path
from typing import Any

import pytest

from rarlhf.config.errors import UserError
from rarlhf.evaluation.comparisons import DEFINITIONS
from tests.rarlhf.evaluation.runs import PROMPTS, TEST, compared, write_metrics, write_params, write_run

SHIFTS = {"rlhf": {1: 0.0, 2: 0.0}}
NUMBERS = {"rlhf": {1: 1.0, 2: 2.0}}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"samples": 3}, "a has 2 samples per test prompt and .*b has 3, on which tails depend"),
        ({"prompt": 0.5}, r"score the same test prompts differently \(by up to 0.5\), so they have other scorers"),
    ],
)
def test_generations_that_were_tested_otherwise_are_refused(
    changed: dict[str, Any], message: str, tmp_path: Path
) -> None:
    a, b = write_run(tmp_path / "a", SHIFTS), write_run(tmp_path / "b", SHIFTS, **changed)
    with pytest.raises(UserError, match=message) as refusal:
        compared(a, b)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("edit", [("prompt 7", "prompt seven"), ('"prompt_id": 7', '"prompt_id": 77')])
def test_other_prompts_are_refused(edit: tuple[str, str], tmp_path: Path) -> None:
    a, b = (write_run(tmp_path / name, SHIFTS) for name in "ab")
    for path in (b / "generations/rlhf").iterdir():
        path.write_text(path.read_text().replace(*edit))
    with pytest.raises(UserError, match=rf"answer other test prompts \({PROMPTS} and {PROMPTS}\)"):
        compared(a, b)


def test_fewer_prompts_are_refused(tmp_path: Path) -> None:
    a, b = (write_run(tmp_path / name, SHIFTS) for name in "ab")
    for path in (b / "generations/rlhf").iterdir():
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:-2]))
    with pytest.raises(UserError, match=rf"answer other test prompts \({PROMPTS} and {PROMPTS - 1}\)"):
        compared(a, b)


def test_other_definitions_are_refused_with_the_run_to_evaluate_again(tmp_path: Path) -> None:
    a, b = (write_run(tmp_path / name, SHIFTS) for name in "ab")
    write_metrics(b, NUMBERS, definitions=DEFINITIONS - 1)
    with pytest.raises(UserError, match=rf"evaluate {b} again with the later code"):
        compared(a, b)  # A's numbers are measured here, by today's definitions


def metrics_alone(folder: Path, changed: dict[str, Any], **params: Any) -> Path:
    write_params(folder, ["rlhf"], [1, 2], **params)
    return write_metrics(folder, NUMBERS, **changed)


@pytest.mark.parametrize(
    ("test", "message"),
    [
        ({"samples": 3}, "a has 2 samples per test prompt and .*b has 3"),
        ({"prompts": 30}, "a was tested on 20 prompts with a tail of 2 .* and .*b on 30 prompts"),
        ({"tail_rule": "other"}, r"b on 20 prompts with a tail of 2 \(other\)"),
    ],
)
def test_evaluations_of_other_tests_are_refused(test: dict[str, Any], message: str, tmp_path: Path) -> None:
    a = metrics_alone(tmp_path / "a", {})
    b = metrics_alone(tmp_path / "b", {"test": TEST | test})
    with pytest.raises(UserError, match=message):
        compared(a, b)


def test_without_generations_params_that_decide_the_prompts_must_be_the_same(tmp_path: Path) -> None:
    a = metrics_alone(tmp_path / "a", {})
    b = metrics_alone(tmp_path / "b", {}, prompts__seed=99)
    with pytest.raises(UserError, match=r"differ in prompts.seed, and without the generations of .*a, .*b nothing"):
        compared(a, b)
    c = write_metrics(write_run(tmp_path / "c", SHIFTS, prompts__seed=99), NUMBERS)
    with pytest.raises(UserError, match=rf"the generations of {a} nothing.*`dvc checkout`.* in {a} gets them"):
        compared(c, a)
    other_alpha = metrics_alone(tmp_path / "d", {}, risk__alpha=0.9)
    assert compared(a, other_alpha).pairs[0].equal


def test_a_run_without_evaluation_cannot_be_compared_with_one_without_generations(tmp_path: Path) -> None:
    a, b = metrics_alone(tmp_path / "a", {}), write_run(tmp_path / "b", SHIFTS)
    for order in ((a, b), (b, a)):
        with pytest.raises(UserError, match=rf"{b} has no metrics/evaluate.json, and {a} has no generations"):
            compared(*order)
