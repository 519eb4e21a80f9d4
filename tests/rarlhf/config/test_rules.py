"""Choices that are allowed and make results worse are said."""

from pathlib import Path

import pytest

from rarlhf.config.load import load_params
from rarlhf.config.params import Params
from rarlhf.config.rules import cautions


@pytest.fixture
def params() -> Params:
    return load_params(Path(__file__).parents[3] / "presets" / "tiny.yaml")


def changed(params: Params, edits: dict[str, object]) -> Params:
    values = params.model_dump()
    for key, value in edits.items():
        *path, name = key.split(".")
        section = values
        for part in path:
            section = section[part]
        section[name] = value
    return Params.model_validate(values)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            {"data.columns.text": "prompt.text", "data.columns.prompt": None},
            "data.columns.text = 'prompt.text': SFT",
        ),
        (
            {"data.columns.text": "line", "data.columns.prompt": "line"},
            "data.columns.text = 'line': SFT texts are bare prompts",
        ),
        ({"sft.tokens": 8, "prompts.tokens": 8}, "sft.tokens = 8, prompts.tokens = 8: SFT texts are no longer than"),
        ({"sft.tokens": 9, "prompts.tokens": 8}, None),
        ({"sft.tokens": 8, "prompts.tokens": 8, "sft.end_of_text": False}, None),
        ({"sft.tokens": 8, "prompts.tokens": 8, "sft.epochs": 0}, None),
        ({"sft.tokens": 8, "prompts.tokens": 8, "prompts.chat_template": True}, None),
    ],
)
def test_it_is_said_where_sft_would_teach_to_stop(values: dict[str, object], said: str | None, params: Params) -> None:
    lines = list(cautions(changed(params, {"sft.end_of_text": True} | values)))
    assert len(lines) == bool(said)
    assert all(line.startswith(said) and "sft.end_of_text to false" in line for line in lines)
