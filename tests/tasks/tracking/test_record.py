from rarlhf.config.params import Params
from tasks.inputs import Inputs, read_inputs
from tasks.tracking.record import stage_record


def test_the_method_is_the_stage_where_that_is_one(params: Params) -> None:
    inputs = read_inputs("toy", {"seed": 2}, params)
    assert stage_record("ppo", {"method": "ra_rlhf", "seed": 1}, params, inputs).tags["method"] == "ra_rlhf"
    assert stage_record("sft", {}, params, inputs).tags["method"] == "sft"
    assert "method" not in stage_record("evaluate", {}, params, inputs).tags


def test_the_run_of_a_method_with_a_seed_is_named_by_both(params: Params) -> None:
    record = stage_record("ppo", {"method": "ra_rlhf", "seed": 3}, params, Inputs("ppo@ra_rlhf-3", {}, {}))
    assert (record.name, record.stage) == ("ra_rlhf@3", "ppo@ra_rlhf-3")
    assert (record.tags["method"], record.tags["seed"], record.tags["stage"]) == ("ra_rlhf", "3", "ppo")
    record = stage_record("generate", {"method": "ra_rlhf"}, params, Inputs("generate@ra_rlhf", {}, {}))
    assert (record.name, record.stage) == ("generate@ra_rlhf", "generate@ra_rlhf")
