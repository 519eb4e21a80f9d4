import pytest

from rarlhf.config.params import Params
from tasks.inputs import Inputs, params_hash, read_inputs
from tasks.tracking.record import run_name, stage_record


def test_the_method_is_the_stage_where_that_is_one(params: Params) -> None:
    inputs = read_inputs("toy", {"seed": 2}, params)
    assert stage_record("ppo", {"method": "ra_rlhf", "seed": 1}, params, inputs).tags["method"] == "ra_rlhf"
    assert stage_record("sft", {}, params, inputs).tags["method"] == "sft"
    assert "method" not in stage_record("evaluate", {}, params, inputs).tags


@pytest.mark.parametrize(
    ("stage", "arguments", "shown"),
    [
        ("ppo", {"method": "ra_rlhf", "seed": 3}, "tiny ra_rlhf 3"),
        ("generate", {"method": "ra_rlhf"}, "tiny generate ra_rlhf"),
        ("samples", {"split": "train"}, "tiny samples train"),
        ("evaluate", {}, "tiny evaluate"),
    ],
)
def test_a_run_is_named_by_what_it_is(stage: str, arguments: dict[str, object], shown: str, params: Params) -> None:
    record = stage_record(stage, arguments, params, Inputs("as@dvc", {}, {}))
    assert (record.name, record.stage) == (f"{shown} {params_hash(params)[:6]}", "as@dvc")
    assert (record.tags["stage"], record.tags["params_hash"]) == (stage, params_hash(params))


def test_another_value_gives_another_name(params: Params) -> None:
    other = params.model_copy(update={"seeds": [1]})
    assert run_name(params, "pipeline") != run_name(other, "pipeline")
    assert run_name(params, "pipeline") == run_name(params.model_copy(), "pipeline")


def test_a_description_says_what_where_and_how(params: Params) -> None:
    record = stage_record("toy", {"seed": 2, "method": "rlhf"}, params, Inputs("toy@2", {}, {}))
    assert record.tags["mlflow.note.content"].splitlines() == [
        "A toy.",
        "",
        "- stage `toy@2` of preset tiny",
        "- method RLHF (`rlhf`), seed 2",
        "- outputs: `out/2`, `metrics/toy.json`",
        "- command: `python -m tasks.toy --seed 2 --source in.txt --out out/2`",
    ]
    bare = stage_record("some", {}, params, Inputs("some", {}, {})).tags["mlflow.note.content"]
    assert bare == "- stage `some` of preset tiny\n- outputs: \n- command: `python -m tasks.some`"
    assert "mlflow.note.content" not in stage_record("nosuch", {}, params, Inputs("nosuch", {}, {})).tags
