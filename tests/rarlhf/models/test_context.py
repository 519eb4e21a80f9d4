"""The number of positions in a model's configuration."""

import json
from pathlib import Path

import pytest
from transformers import BloomConfig, GPT2Config, LlamaConfig, LlavaConfig, PreTrainedConfig

from rarlhf.models.context import context_length, positions_of


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (GPT2Config(n_positions=9), 9),
        (LlamaConfig(max_position_embeddings=11), 11),
        (LlavaConfig(text_config=LlamaConfig(max_position_embeddings=13)), 13),
        (BloomConfig(), None),
    ],
)
def test_an_object_and_its_file_give_the_same(config: PreTrainedConfig, expected: int | None, tmp_path: Path) -> None:
    config.save_pretrained(tmp_path)
    assert positions_of(config) == positions_of(json.loads((tmp_path / "config.json").read_text())) == expected
    assert context_length(tmp_path) == expected
