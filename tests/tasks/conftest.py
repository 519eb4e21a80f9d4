import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from rarlhf.config.load import load_params
from rarlhf.config.params import Params

REPOSITORY = Path(__file__).parents[2]
DVC_YAML = """\
stages:
  toy:
    matrix:
      seed: ${seeds}
    desc: a toy
    cmd: >-
      python -m tasks.toy --seed ${item.seed}
      --source in.txt --out out/${item.seed}
    deps:
      - in.txt
      - data/raw
      - made/${item.seed}.txt
    params:
      - risk
      - ppo.lr
    outs:
      - out/${item.seed}
    metrics:
      - metrics/toy.json:
          cache: false
  check:
    cmd: python -m tasks.check
    params:
      - params.yaml:
  some:
    cmd: python -m tasks.some
    deps:
      - ${model.source}.txt
    params:
      - params.yaml:
          - kl.coef
  wrong:
    cmd: python -m tasks.wrong
    params:
      - risk.beta
  lacking:
    cmd: python -m tasks.lacking
    deps:
      - nowhere
"""


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, _tables_at_once: None) -> Iterator[Path]:
    """A folder with a small dvc.yaml, its inputs, the tiny preset and no repository; the process stands in it."""
    saved = dict(os.environ)
    monkeypatch.chdir(tmp_path)
    for name in ("DVC_ROOT", "DVC_STAGE", "MLFLOW_TRACKING_URI", "RARLHF_PIPELINE"):
        monkeypatch.delenv(name, raising=False)
    text = (REPOSITORY / "presets" / "tiny.yaml").read_text()
    (tmp_path / "presets").mkdir()
    for file in ("params.yaml", "presets/tiny.yaml"):
        (tmp_path / file).write_text(text)
    (tmp_path / "dvc.yaml").write_text(DVC_YAML)
    (tmp_path / "in.txt").write_text("in\n")
    (tmp_path / "data" / "raw").mkdir(parents=True)
    (tmp_path / "data" / "raw" / "train.jsonl").write_text("{}\n")
    (tmp_path / "made").mkdir()
    for seed in (1, 2):
        (tmp_path / "made" / f"{seed}.txt").write_text(f"{seed}\n")
    yield tmp_path
    os.environ.clear()
    os.environ.update(saved)


@pytest.fixture
def params(workspace: Path) -> Params:
    return load_params()


@pytest.fixture(scope="session")
def evaluate_paths() -> dict[str, Path]:
    """Where the stage `evaluate` reads and writes."""
    return {
        "generations": Path("generations"),
        "prompts": Path("data/prompts"),
        "models": Path("models"),
        "curves": Path("curves"),
        "samples": Path("data/samples/test"),
        "judgements": Path("judgements"),
        "second_scorer": Path("metrics/second_scorer.json"),
        "utility": Path("utility"),
        "metrics": Path("metrics/evaluate.json"),
        "summary": Path("metrics/summary"),
        "plots": Path("plots"),
        "report": Path("reports/report.html"),
        "table": Path("reports/table.md"),
        "latex": Path("reports/table.tex"),
        "cards": Path("reports/model_cards"),
    }
