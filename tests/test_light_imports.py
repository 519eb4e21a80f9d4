"""What starts quickly because it does not import what it has no use for: commands and stages in processes of their own.

Each process notes the modules that it had imported when it ended.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rarlhf.config.load import load_params
from rarlhf.config.params import Params
from rarlhf.models.loading import save_model
from rarlhf.system.files import write_jsonl
from rarlhf.training import base, reward
from tasks.preset import set_values

ROOT = Path(__file__).parents[1]
NOTE = """
import atexit, json, os, sys
from pathlib import Path

@atexit.register
def note():
    modules = sorted(name for name, module in sys.modules.items() if module is not None)
    Path(os.environ["NOTED"], f"{os.getpid()}.json").write_text(json.dumps([sys.orig_argv, modules]))
"""
NETS = {"torch", "transformers"}
ADAPTERS = {"peft", "bitsandbytes"}
TABLES = {"datasets", "pandas", "pyarrow"}
OTHERS = {"mlflow", "sklearn", "matplotlib", "dvc", "prefect", "trl"}
TEXTS = ["we liked the film .", "we saw the music .", "we regret the old plot and the weak end ."]
MICRO = {
    "runtime.threads": 1,
    "data.train_rows": 300,
    "data.test_rows": 100,
    "data.second_scorer_rows": 20,
    "model.scratch.vocab_size": 280,
    "model.scratch.context": 32,
    "model.scratch.layers": 1,
    "model.scratch.width": 8,
    "model.scratch.heads": 2,
    "model.scratch.epochs": 1,
    "reward.max_length": 32,
    "reward.scratch.layers": 1,
    "reward.scratch.width": 8,
    "reward.scratch.heads": 2,
    "prompts.train": 24,
    "prompts.validation": 5,
    "prompts.test": 30,
    "prompts.perplexity": 10,
    "ppo.batch_size": 8,
    "ppo.mini_batch_size": 4,
    "ppo.micro_batch_size": 4,
    "plan.train": {"prompts": 12, "samples": 8},
    "plan.test": {"prompts": 10, "samples": 8},
    "fit.batch_size": 16,
    "fit.micro_batch_size": 16,
    "judge.second_scorer.max_length": 32,
    "sft.tokens": 24,
    "sft.epochs": 1,
    "seeds": [1],
    "ppo.max_new_tokens": 5,
    "generate.samples": 1,
}
DVC_YAML = """\
stages:
  download: {cmd: x, params: [data]}
  base: {cmd: x, params: [model]}
  sft: {cmd: x, params: [sft]}
  generate_start: {cmd: x, params: [generate]}
"""
Run = Callable[..., dict[str, set[str]]]


@pytest.fixture
def noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command of Python; returns, for its process and those that it starts, the modules by the last word of
    the command that names a module or a file."""
    noted = tmp_path / "noted"
    noted.mkdir()
    (noted / "sitecustomize.py").write_text(NOTE)
    monkeypatch.chdir(tmp_path)
    for name in ("DVC_ROOT", "DVC_STAGE", "MLFLOW_TRACKING_URI", "RARLHF_PIPELINE"):
        monkeypatch.delenv(name, raising=False)
    path = f"{noted}{os.pathsep}{ROOT}"

    def run(*words: str) -> dict[str, set[str]]:
        done = subprocess.run(
            [sys.executable, *words],
            env={**os.environ, "PYTHONPATH": path, "NOTED": str(noted)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        found = [json.loads(file.read_text()) for file in noted.glob("*.json")]
        return {command[2]: set(modules) for command, modules in found}

    return run


@pytest.fixture
def params(tmp_path: Path) -> Params:
    (tmp_path / "params.yaml").write_text(set_values((ROOT / "presets" / "tiny.yaml").read_text(), MICRO))
    (tmp_path / "dvc.yaml").write_text(DVC_YAML)
    return load_params(tmp_path / "params.yaml")


@pytest.fixture
def models(tmp_path: Path, params: Params) -> None:
    """A language model in `models/base`, a classifier in `models/reward`."""
    tokenizer = base.train_tokenizer(TEXTS, params.model.scratch)
    save_model(base.new_model(tokenizer, params.model.scratch), tokenizer, tmp_path / "models" / "base")
    words = reward.train_tokenizer(TEXTS, params.reward)
    save_model(reward.new_classifier(words, params.reward), words, tmp_path / "models" / "reward")


MAIN = "import sys; from rarlhf.commands.main import main; sys.exit(main(sys.argv[1:]))"


def test_help_needs_nothing(noted: Run) -> None:
    modules = noted("-c", MAIN, "--help")[MAIN]
    assert not modules & (NETS | ADAPTERS | TABLES | OTHERS | {"numpy", "pydantic", "ruamel.yaml"})
    assert "rarlhf.commands.compare" in modules


@pytest.mark.parametrize("command", [("generate", "models/base", "we"), ("score", "we")])
def test_commands_on_whole_models(command: tuple[str, ...], noted: Run, models: None) -> None:
    modules = noted("-c", MAIN, *command)[MAIN]
    assert modules >= NETS
    assert not modules & (ADAPTERS | TABLES | OTHERS)


def test_stages_without_an_adapter(noted: Run, models: None, params: Params, tmp_path: Path) -> None:
    assert params.model.adapter == "none"
    stage = "tasks.download"
    found = noted("-m", stage, "--inputs", "data/inputs", "--out", "data/raw")
    assert not found[stage] & (NETS | ADAPTERS | TABLES | OTHERS)
    assert "mlflow" in found["tasks.tracking.worker"]  # it is the one that tracks

    stage = "tasks.base"
    found = noted("-m", stage, "--raw", "data/raw", "--out", "models/own", "--curve", "curves/base.csv")
    assert "transformers.trainer" in found[stage]
    assert not found[stage] & (ADAPTERS | TABLES | OTHERS)

    (tmp_path / "data" / "prompts").mkdir()
    write_jsonl(Path("data/prompts/sft.jsonl"), [{"text": text} for text in TEXTS])
    query = {"prompt_id": 0, "prompt": "we", "prompt_score": 0.0, "label": 1, "input_ids": [5, 6]}
    write_jsonl(Path("data/prompts/test.jsonl"), [query])
    stage = "tasks.sft"
    found = noted(
        *("-m", stage, "--base", "models/base", "--prompts", "data/prompts"),
        *("--out", "models/sft", "--curve", "curves/sft.csv"),
    )
    assert "trl" in found[stage]
    assert not found[stage] & (ADAPTERS | OTHERS - {"trl"})

    stage = "tasks.generate_start"
    found = noted(
        *("-m", stage, "--method", "sft", "--model", "models/sft", "--sft", "models/sft"),
        *("--reward", "models/reward", "--prompts", "data/prompts", "--out", "generations/sft"),
    )
    assert not found[stage] & (ADAPTERS | TABLES | OTHERS)
    assert Path("generations/sft/1.jsonl").is_file()
