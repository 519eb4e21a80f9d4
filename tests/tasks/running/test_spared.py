import pytest

from rarlhf.config.params import Params
from tasks.running.spared import unused
from tests.rarlhf.small import changed


def test_a_plain_stage_needs_neither(params: Params) -> None:
    assert unused("ppo", params) == ["peft", "datasets"]
    assert unused("ppo", changed(params, {"model.adapter": "lora"})) == ["datasets"]
    assert unused("sft", params) == unused("tuned", params) == unused("download", params) == ["peft"]


@pytest.mark.parametrize("stage", ["check", "utility"])
def test_tasks_of_others_may_import_anything(stage: str, params: Params) -> None:
    assert unused(stage, params) == ["peft", "datasets"]
    assert unused(stage, changed(params, {"utility.tasks": ["boolq"]})) == []
    assert unused("ppo", changed(params, {"utility.tasks": ["boolq"]})) == ["peft", "datasets"]


def test_a_scorer_of_ones_own_may_import_anything(params: Params) -> None:
    assert unused("ppo", changed(params, {"reward.source": "python:mine:score"})) == []
