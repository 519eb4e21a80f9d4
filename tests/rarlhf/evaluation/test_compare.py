"""Two runs compared, by numbers worked out by hand."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from rarlhf.config.errors import UserError
from rarlhf.evaluation.compare import changes
from rarlhf.evaluation.compare_tables import terminal
from rarlhf.evaluation.judgements import Judgement, write_judgement
from tests.rarlhf.evaluation.runs import PROMPTS, compared, set_perplexities, write_metrics, write_run

T1 = 12.7062  # t quantile at 97.5 % with one degree of freedom
MEAN = 0.95 + 0.5  # of p / 10 over 20 prompts, and of two samples 0 and 1


@pytest.fixture
def a(tmp_path: Path) -> Path:
    return write_run(tmp_path / "a", {"sft": {1: 0.0, 2: 0.0}, "rlhf": {1: 1.0, 2: 1.0}}, kl=1.0)


def test_differences_are_those_of_b_less_a_paired_by_seed(a: Path, tmp_path: Path) -> None:
    b = write_run(tmp_path / "b", {"sft": {1: 0.0, 2: 0.0}, "rlhf": {1: 1.5, 2: 2.5}}, kl=1.0)
    found = compared(a, b)
    assert [pair.methods for pair in found.pairs] == [("sft", "sft"), ("rlhf", "rlhf")]
    equal, pair = found.pairs
    assert equal.equal and not pair.equal
    assert pair.spreads[0]["reward_mean"]["mean"] == pytest.approx(MEAN + 1)
    assert pair.spreads[1]["reward_mean"]["mean"] == pytest.approx(MEAN + 2)
    difference = pair.differences["reward_mean"]
    assert difference["per_seed"] == pytest.approx([0.5, 1.5])
    # Standard error of 0.5 and 1.5: sqrt(1 / 2) / sqrt(2) = 0.5. Every prompt differs by the same: no prompts' error.
    assert difference["interval"] == pytest.approx([1 - T1 / 2, 1 + T1 / 2], abs=1e-3)
    assert pair.differences["reward_prompt_tail"]["mean"] == pytest.approx(1.0)
    assert pair.like_kl and found.by_prompts
    assert "perplexity_reference" not in pair.differences
    assert len([note for note in found.notes if "perplexity is left out" in note]) == 2


def test_prompts_are_paired_too(a: Path, tmp_path: Path) -> None:
    """Half of the prompts differ by 2: the choice of prompts matters, and by the bootstrap's error."""
    b = write_run(tmp_path / "b", {"sft": {1: 0.0, 2: 0.0}, "rlhf": {1: 1.0, 2: 1.0}}, kl=1.0)
    for seed in (1, 2):
        path = b / "generations/rlhf" / f"{seed}.jsonl"
        lines = path.read_text().splitlines()
        for number in range(0, len(lines), 4):  # the two samples of every second prompt
            for line in (number, number + 1):
                score = float(lines[line].partition('"score": ')[2].partition(",")[0])
                lines[line] = lines[line].replace(f'"score": {score}', f'"score": {score + 2}')
        path.write_text("\n".join(lines) + "\n")
    _, pair = compared(a, b).pairs
    difference = pair.differences["reward_mean"]
    assert difference["per_seed"] == pytest.approx([1.0, 1.0])
    assert difference["prompt_error"] == pytest.approx(1 / 20**0.5, rel=0.3)  # values 0 and 2: deviation 1


def test_two_methods_of_one_run(a: Path) -> None:
    (pair,) = compared(a, a, ("sft", "rlhf")).pairs
    assert pair.methods == ("sft", "rlhf")
    assert pair.differences["reward_mean"]["per_seed"] == pytest.approx([1.0, 1.0])


def test_kl_is_told_apart_by_the_lower_target(tmp_path: Path) -> None:
    shifts = {"rlhf": {1: 0.0, 2: 0.0}}
    one = write_run(tmp_path / "one", shifts, kl=0.5, kl__target=1.0)
    other = write_run(tmp_path / "other", shifts, kl=0.55, kl__target=2.0)
    far = write_run(tmp_path / "far", shifts, kl=0.65, kl__target=2.0)
    assert compared(one, other).pairs[0].like_kl  # 0.05 <= 0.1 x 1
    assert not compared(far, one).pairs[0].like_kl  # 0.15 > 0.1 x 1, though not above 0.1 x 2


def test_perplexities_are_those_of_the_evaluations_if_they_are_of_these_generations(tmp_path: Path) -> None:
    one = write_run(tmp_path / "one", {"rlhf": {1: 0.0, 2: 0.0}})
    other = write_run(tmp_path / "other", {"rlhf": {1: 1.0, 2: 1.0}})
    write_metrics(one, {"rlhf": {1: MEAN, 2: MEAN}})
    write_metrics(other, {"rlhf": {1: MEAN + 1, 2: MEAN + 1}})
    set_perplexities(one, "rlhf", [3.0, 4.0])
    set_perplexities(other, "rlhf", [3.5, 4.0])
    found = compared(one, other)
    assert found.pairs[0].differences["perplexity_reference"]["per_seed"] == [0.5, 0.0]
    assert found.notes == []
    write_metrics(other, {"rlhf": {1: MEAN, 2: MEAN}})  # as before the generations were made again
    stale = compared(one, other)
    assert "perplexity_reference" not in stale.pairs[0].differences
    assert stale.notes == [
        f"The perplexity is left out: metrics/evaluate.json of {other} is of other generations. `dvc repro evaluate` "
        "renews it."
    ]


def test_seeds_that_one_has_are_left_out_and_named(tmp_path: Path) -> None:
    one = write_run(tmp_path / "one", {"rlhf": {1: 9.0, 2: 0.0, 3: 0.0}})
    other = write_run(tmp_path / "other", {"rlhf": {3: 1.0, 2: 0.5, 4: 9.0}})
    found = compared(one, other)
    assert found.seeds == [2, 3]
    assert found.pairs[0].differences["reward_mean"]["per_seed"] == pytest.approx([0.5, 1.0])
    assert found.notes[:2] == ["Only A has seed 1, which is left out.", "Only B has seed 4, which is left out."]


def test_one_seed_has_no_interval(tmp_path: Path) -> None:
    one, other = (write_run(tmp_path / str(shift), {"rlhf": {1: shift}}) for shift in (0.0, 1.0))
    found = compared(one, other)
    assert found.pairs[0].differences["reward_mean"]["interval"] is None  # every prompt differs by the same
    assert found.notes[0].startswith("One seed in common: the intervals contain the error of the test prompts alone")
    for run, value in ((one, 0.0), (other, 1.0)):
        write_metrics(run, {"rlhf": {1: value}})
    shutil.rmtree(other / "generations")
    assert (
        "One seed in common has no spread over seeds, so the differences have no intervals."
        in compared(one, other).notes
    )


def test_without_generations_seeds_alone_are_paired(a: Path, tmp_path: Path) -> None:
    write_metrics(a, {"sft": {1: 0.0, 2: 0.0}, "rlhf": {1: 1.0, 2: 2.0}})
    b = tmp_path / "b"
    b.mkdir()
    (b / "params.yaml").write_bytes((a / "params.yaml").read_bytes())
    write_metrics(b, {"sft": {1: 0.0, 2: 0.0}, "rlhf": {1: 1.5, 2: 3.5}})
    found = compared(a, b)
    assert not found.by_prompts
    _, pair = found.pairs
    assert pair.differences["reward_cvar_10"]["per_seed"] == [0.5, 1.5]
    assert pair.differences["reward_cvar_10"]["interval"] == pytest.approx([1 - T1 / 2, 1 + T1 / 2], abs=1e-3)
    assert not pair.like_kl  # 1.5 apart
    alone, how = found.notes
    assert alone == (
        f"Without the generations of {b} the differences are paired by seed alone: the error from the choice of test "
        "prompts is not in their intervals."
    )
    assert "`dvc checkout`" in how
    (b / "generations").mkdir()
    with pytest.raises(UserError, match="has no methods"):
        compared(a, b)


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ([("rlhf", "ra_rlhf")], "a has no method ra_rlhf; it has sft, rlhf$"),
        ([("cvar", "rlhf")], "a has no method cvar; it has sft, rlhf$"),
    ],
)
def test_a_method_that_is_not_there_is_refused(a: Path, methods: list[tuple[str, str]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        compared(a, a, *methods)


def test_nothing_in_common_is_refused(a: Path, tmp_path: Path) -> None:
    other = write_run(tmp_path / "other", {"ra_rlhf": {1: 0.0, 2: 0.0}})
    with pytest.raises(UserError, match="none in common; name a method of each, as in A:rlhf B:ra_rlhf"):
        compared(a, other)
    third = write_run(tmp_path / "third", {"rlhf": {3: 0.0}})
    with pytest.raises(UserError, match="third has 3: differences are paired by seed"):
        compared(a, third)


def test_params_that_the_project_no_longer_accepts_are_compared_if_the_others_are(a: Path, tmp_path: Path) -> None:
    b = write_run(tmp_path / "b", {"rlhf": {1: 1.5, 2: 2.5}}, kl=1.0, risk__former="x")
    found = compared(b, a)
    assert found.pairs[0].differences["reward_mean"]["per_seed"] == pytest.approx([-0.5, -1.5])
    assert ("risk.former", "x", "–") in found.changed
    with pytest.raises(
        UserError, match=r"neither of .*b \(risk.former: unknown key\) nor of .*b, so there are no settings"
    ):
        compared(b, b)


def test_changes_name_every_key_that_differs() -> None:
    one = {"seeds": [1], "risk": {"alpha": 0.3, "rho": 1}, "gone": None, "empty": {}}
    other = {"seeds": [1], "risk": {"alpha": 0.5, "rho": 1}, "empty": {"new": 1}}
    assert changes(one, other) == [
        ("risk.alpha", 0.3, 0.5),
        ("gone", None, "–"),
        ("empty", {}, "–"),
        ("empty.new", "–", 1),
    ]


def judge(run: Path, method: str, shifts: dict[int, float], scorer: str, answers: str = "") -> None:
    """A second scorer that gives p / 10 plus the shift to both samples of prompt p."""
    for seed, shift in shifts.items():
        scores = np.repeat(np.arange(PROMPTS)[:, None] / 10 + shift, 2, axis=1)
        path = run / "judgements" / method / f"{seed}.safetensors"
        write_judgement(Judgement(scores), path, scorer, answers)


def test_the_second_scorer_is_compared_if_both_runs_have_the_same(a: Path, tmp_path: Path) -> None:
    b = write_run(tmp_path / "b", {"rlhf": {1: 1.5, 2: 2.5}})
    assert not any("second scorer" in note for note in compared(a, b).notes)
    judge(a, "rlhf", {1: 0.0, 2: 0.0}, "one")
    lacking = f"The second scorer is left out: {b} lacks judgements."
    assert lacking in compared(a, b).notes
    judge(b, "rlhf", {1: 1.0, 2: 2.0}, "other")
    found = compared(a, b)
    assert "second_mean" not in found.pairs[0].differences
    assert f"The second scorer is left out: {a} and {b} have different ones." in found.notes
    judge(b, "rlhf", {1: 1.0, 2: 2.0}, "one")
    (pair,) = compared(a, b).pairs
    for metric in ("second_mean", "second_prompt_tail", "second_cvar_10"):
        assert pair.differences[metric]["per_seed"] == pytest.approx([1.0, 2.0], abs=1e-6)
    assert pair.spreads[1]["second_mean"]["per_seed"] == pytest.approx([1.95, 2.95], abs=1e-6)
    assert "second scorer: CVaR 10 %" in terminal(compared(a, b))
    judge(b, "rlhf", {1: 1.0, 2: 2.0}, "one", answers="other")
    assert f"The second scorer is left out: {b} has judgements of other answers." in compared(a, b).notes


def second_scorer_notes(a: Path, b: Path) -> list[str]:
    return [note for note in compared(a, b).notes if "second scorer" in note]


def test_judgements_that_are_stale_in_both_runs_are_told_in_one_line(a: Path, tmp_path: Path) -> None:
    b = write_run(tmp_path / "b", {"sft": {1: 0.0, 2: 0.0}, "rlhf": {1: 1.5, 2: 2.5}})
    for method in ("sft", "rlhf"):
        judge(a, method, {1: 0.0, 2: 0.0}, "one", answers="other")
        judge(b, method, {1: 0.0, 2: 0.0}, "one", answers="other")
    stale = "has judgements of other answers"
    assert second_scorer_notes(a, b) == [f"The second scorer is left out: {a} {stale} and {b} {stale}."]
    judge(a, "sft", {1: 0.0, 2: 0.0}, "one")
    judge(b, "sft", {1: 0.0, 2: 0.0}, "one")
    assert second_scorer_notes(a, b) == [f"The second scorer is left out of RLHF: {a} {stale} and {b} {stale}."]
    shutil.rmtree(b / "judgements/rlhf")
    assert second_scorer_notes(a, b) == [
        f"The second scorer is left out of RLHF: {a} {stale} and {b} lacks judgements."
    ]


def test_nobody_misses_a_second_scorer_that_neither_run_has(a: Path, tmp_path: Path) -> None:
    b = write_run(tmp_path / "b", {"rlhf": {1: 1.5, 2: 2.5}})
    assert second_scorer_notes(a, b) == []
    for run in (a, b):
        for seed in (1, 2):
            toxicity = Judgement(toxicity=np.zeros((PROMPTS, 2)))
            write_judgement(toxicity, run / "judgements/rlhf" / f"{seed}.safetensors")
    assert second_scorer_notes(a, b) == []
    judge(a, "rlhf", {1: 0.0, 2: 0.0}, "one")
    assert second_scorer_notes(a, b) == [f"The second scorer is left out: {b} has no second scorer."]
    judge(a, "rlhf", {1: 0.0}, "other")
    assert f"{a} was not judged by one second scorer and" in second_scorer_notes(a, b)[0]


def test_a_judges_rounding_is_no_difference(a: Path, tmp_path: Path) -> None:
    b = write_run(tmp_path / "b", {"sft": {1: 0.0, 2: 0.0}, "rlhf": {1: 1.0, 2: 1.0}}, kl=1.0)
    judge(a, "rlhf", {1: 0.0, 2: 0.0}, "one")
    judge(b, "rlhf", {1: 2e-7, 2: 3e-7}, "one")
    (pair,) = compared(a, b, ("rlhf", "rlhf")).pairs
    assert any(pair.differences["second_mean"]["per_seed"]) and pair.equal
    judge(b, "rlhf", {1: 2e-5, 2: 3e-5}, "one")
    assert not compared(a, b, ("rlhf", "rlhf")).pairs[0].equal


def test_a_broken_judgement_is_refused(a: Path) -> None:
    judge(a, "rlhf", {1: 0.0, 2: 0.0}, "one")
    path = a / "judgements/rlhf/2.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(UserError, match=rf"^{a}: .*2.safetensors is missing or not whole"):
        compared(a, a, ("rlhf", "rlhf"))
