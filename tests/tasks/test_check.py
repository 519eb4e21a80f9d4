"""Stage `check`: what it says before anything runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import rarlhf.training.estimate
from rarlhf.config.load import load_params
from rarlhf.config.params import Params
from tasks.check import check

TINY = Path(__file__).parents[2] / "presets" / "tiny.yaml"


class Speaking:
    """A run that keeps its log and writes where it is told."""

    def __init__(self, params: Params) -> None:
        self.params = params
        self.lines: list[str] = []

    def log(self, text: str) -> None:
        self.lines.append(text)

    @contextmanager
    def output(self, path: Path) -> Iterator[Path]:
        yield path


def test_cautions_are_said_and_stop_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rarlhf.training.estimate, "estimate", lambda params: None)
    params = load_params(TINY)
    model = params.model.model_copy(update={"adapter": "lora", "quantization": "int8", "int8_threshold": 6.0})
    for section, cautioned in ((params.model, False), (model, True)):
        run = Speaking(params.model_copy(update={"model": section}))
        check.__wrapped__(run, tmp_path / "params.txt", tmp_path / "code.txt")
        assert any(line.startswith("warning: model.quantization = 'int8'") for line in run.lines) is cautioned
        assert (tmp_path / "params.txt").read_text() == "params.yaml is valid\n"
