"""Code blocks of the documentation, run as they stand."""

import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from shutil import copyfile

import pytest
from ruamel.yaml import YAML
from transformers import AutoModelForCausalLM

from rarlhf.config.load import load_params
from rarlhf.models.loading import save_model
from rarlhf.system.files import read_jsonl
from rarlhf.training.base import new_model, train_tokenizer
from tasks.base import base
from tasks.download import download
from tasks.inputs import Inputs
from tasks.preset import override
from tasks.prompts import prompts
from tasks.reward import reward
from tasks.running.stage import Run

REPOSITORY = Path(__file__).parents[1]
TEXTS = ["the film was good .", "the old plot , we liked the good end .", "we liked it ."]
SHORT = {"ppo.iterations": 3, "ppo.max_new_tokens": 5, "risk.warmup": 1, "risk.rho": 1.0, "ppo.mini_batch_size": 3}


def blocks(page: str) -> list[str]:
    """The Python blocks of a page."""
    return re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs" / page).read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a small params.yaml and a tiny SFT model, as a user would have after a run."""
    yaml = YAML()
    values = yaml.load((REPOSITORY / "presets" / "tiny.yaml").read_text(encoding="utf-8"))
    for key, value in (SHORT | {"ppo.batch_size": 6, "ppo.micro_batch_size": 3, "runtime.threads": 1}).items():
        section, name = key.split(".")
        values[section][name] = value
    yaml.dump(values, tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    scratch = load_params().model.scratch.model_copy(update={"vocab_size": 280, "context": 32, "width": 16, "heads": 2})
    tokenizer = train_tokenizer(TEXTS, scratch)
    save_model(new_model(tokenizer, scratch), tokenizer, tmp_path / "models" / "sft")
    return tmp_path


def test_the_loop_of_ones_own_runs_and_trains(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = blocks("loop.md")
    exec(compile(block, "docs/loop.md", "exec"), {})  # noqa: S102, the page is ours
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["1", "2", "3"]
    assert lines[-1].endswith(f"kept {2}")  # ceil(.3 x 6)
    before, after = (AutoModelForCausalLM.from_pretrained(name) for name in ("models/sft", "my-model"))
    assert any(not a.equal(b) for a, b in zip(before.parameters(), after.parameters(), strict=True))


class Silent:
    """A tracker that keeps nothing."""

    def metrics(self, values: object, step: int = 0) -> None: ...
    def model(self, folder: Path, params: object) -> None: ...


def run_stage(function: Callable[..., None], name: str, **paths: object) -> None:
    run = Run(load_params(), Inputs(name, {}, {}), Silent())  # type: ignore[arg-type]
    function.__wrapped__(run, **paths)  # type: ignore[attr-defined]
    run.finish()


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the default params.yaml; what the page puts into it can be imported."""
    copyfile(REPOSITORY / "presets" / "tiny.yaml", tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.delitem(sys.modules, "own_scorer", raising=False)
    return tmp_path


def test_prompts_and_a_scorer_of_ones_own_make_queries(root: Path) -> None:
    """The page's files, its command's values, and the stages until queries; the stages after are tested elsewhere."""
    prompts_of, scorer = blocks("own.md")
    exec(compile(prompts_of, "docs/own.md", "exec"), {})  # noqa: S102, the page is ours
    (root / "own_scorer.py").write_text(scorer)
    (command,) = re.findall(r"```sh\n(dvc exp run.*?)```", (REPOSITORY / "docs" / "own.md").read_text(), re.DOTALL)
    words = shlex.split(command.replace("\\\n", " "))
    settings = [words[index + 1].partition("=") for index, word in enumerate(words) if word == "-S"]
    override({key: YAML(typ="safe").load(value) for key, _, value in settings})
    override({"model.scratch.epochs": 1, "runtime.threads": 1})
    raw, models = Path("data/raw"), Path("models")
    run_stage(download, "download", inputs=root, out=raw)
    run_stage(base, "base", raw=raw, out=models / "base", curve=Path("curves/base.csv"))
    outputs = {"out": models / "reward", "curve": Path("curves/reward.csv"), "metrics": Path("metrics/reward.json")}
    run_stage(reward, "reward", raw=raw, code=root, **outputs)
    run_stage(prompts, "prompts", raw=raw, base=models / "base", reward=models / "reward", out=Path("data/prompts"))
    queries = read_jsonl(Path("data/prompts/train.jsonl"))
    assert len(queries) == 256
    assert {query["prompt_score"] for query in queries if "rude" in query["prompt"]} == {-1.0}
    assert {query["prompt_score"] for query in queries if "calm" in query["prompt"]} == {0.0}
    sft = [row["text"] for row in read_jsonl(Path("data/prompts/sft.jsonl"))]
    assert 2 * len(sft) == len(read_jsonl(raw / "train.jsonl"))  # the better half
    assert not any("vile" in text for text in sft)


def test_the_pages_weighted_scorers_are_valid(root: Path) -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", (REPOSITORY / "docs" / "own.md").read_text(), re.DOTALL)
    override({"reward.watch": ["code"], "reward.others": YAML(typ="safe").load(block)["others"]})
    assert [other.weight for other in load_params().reward.others] == [0.5, -1.0]
