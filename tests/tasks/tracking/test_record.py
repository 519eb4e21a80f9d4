from rarlhf.config.params import Params
from tasks.inputs import read_inputs
from tasks.tracking.record import stage_record


def test_the_method_is_the_stage_where_that_is_one(params: Params) -> None:
    inputs = read_inputs("toy", {"seed": 2}, params)
    assert stage_record("ppo", {"method": "ra_rlhf", "seed": 1}, params, inputs).tags["method"] == "ra_rlhf"
    assert stage_record("sft", {}, params, inputs).tags["method"] == "sft"
    assert "method" not in stage_record("evaluate", {}, params, inputs).tags
