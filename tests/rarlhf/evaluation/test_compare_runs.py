"""What is read of a run, and the files that are refused."""

import json
from pathlib import Path

import pytest

from rarlhf.config.errors import UserError
from rarlhf.evaluation.compare_runs import MeasuredRun, read_run
from rarlhf.evaluation.compare_sources import opened
from tests.rarlhf.evaluation.runs import compared, write_metrics, write_run

SHIFTS = {"sft": {1: 0.0, 2: 0.0}, "rlhf": {1: 0.0, 2: 0.0}}


def read(folder: Path) -> MeasuredRun:
    with opened(str(folder)) as source:
        return read_run(source)


def test_methods_without_generations_are_not_there(tmp_path: Path) -> None:
    run = read(write_run(tmp_path / "run", SHIFTS))
    assert (run.methods, run.seeds, run.evaluation, run.kl_target) == (["sft", "rlhf"], [1, 2], None, 0.75)
    assert run.params is not None and run.has_generations
    for file in (tmp_path / "run/generations/sft").iterdir():
        file.unlink()
    (tmp_path / "run/generations/sft").rmdir()
    assert read(tmp_path / "run").methods == ["rlhf"]


def test_every_group_of_methods_is_looked_for(tmp_path: Path) -> None:
    shifts = {name: {1: 0.0} for name in ("sft", "rlhf", "quark", "best")}
    entries = {"ppo": {"rlhf": {"measure": "none"}}, "tuned": {"quark": {"by": "quark"}}}
    entries["decoded"] = {"best": {"rule": "best_of_n", "of": "sft"}}
    changed = {f"methods__{group}": methods for group, methods in entries.items()}
    assert read(write_run(tmp_path / "run", shifts, **changed)).methods == ["sft", "rlhf", "quark", "best"]


def test_an_evaluation_gives_numbers_by_seed_whatever_their_order(tmp_path: Path) -> None:
    run = read(write_metrics(write_run(tmp_path / "run", SHIFTS), {"rlhf": {1: 10.0, 2: 20.0}}))
    assert run.per_seed("rlhf", "kl_sft", [2, 1]) == [20.0, 10.0]
    assert run.per_seed("rlhf", "kl_sft", [2, 3]) is None
    assert run.per_seed("sft", "kl_sft", [1]) is None
    assert run.per_seed("rlhf", "other", [1]) is None


def test_a_generation_file_that_is_cut_is_refused_with_its_run(tmp_path: Path) -> None:
    a, b = (write_run(tmp_path / name, SHIFTS) for name in "ab")
    path = b / "generations/rlhf/2.jsonl"
    path.write_text(path.read_text()[:-30])
    with pytest.raises(UserError, match=rf"^{b}: rlhf/2.jsonl is not a file of generations") as refusal:
        compared(a, b)
    assert "\n" not in str(refusal.value)
    path.unlink()
    with pytest.raises(UserError, match=rf"^{b}: generations of rlhf/2.jsonl are missing"):
        compared(a, b)


@pytest.mark.parametrize("text", ["seeds: [1]\n", "- 1\n", "seeds: 3\nmethods: [base]\nkl: {target: 1}\n"])
def test_params_of_another_form_are_refused(text: str, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", SHIFTS)
    (run / "params.yaml").write_text(text)
    with pytest.raises(UserError, match=rf"^params.yaml of {run} does not say its seeds"):
        read(run)


@pytest.mark.parametrize("broken", ["{", "[]", "{}", "no kl", "a seed too few"])
def test_an_evaluation_of_another_form_is_refused(broken: str, tmp_path: Path) -> None:
    run = write_metrics(write_run(tmp_path / "run", SHIFTS), {"rlhf": {1: 1.0, 2: 2.0}})
    path = run / "metrics/evaluate.json"
    content = json.loads(path.read_text())
    if broken == "no kl":
        del content["methods"]["rlhf"]["kl_sft"]
    elif broken == "a seed too few":
        content["seeds"] = [1]
    path.write_text(json.dumps(content) if broken[0] not in "{[" else broken)
    with pytest.raises(UserError, match=rf"^metrics/evaluate.json of {run} is not what stage `evaluate` writes"):
        read(run)
