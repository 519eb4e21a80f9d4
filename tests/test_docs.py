"""Code blocks of the documentation, run as they stand."""

import re
from pathlib import Path

import pytest
from ruamel.yaml import YAML
from transformers import AutoModelForCausalLM

from rarlhf.base_model import new_model, train_tokenizer
from rarlhf.loading import save_model
from rarlhf.params import load_params

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
