"""Stage judge with a language model that compares answers."""

from pathlib import Path

import pytest

from rarlhf.config.errors import UserError
from rarlhf.config.load import load_params
from rarlhf.config.params import Params
from rarlhf.evaluation.generations import read_tables
from rarlhf.evaluation.preferences_file import PREFERENCES, read_preferences
from rarlhf.models.loading import load_causal_lm, save_model
from rarlhf.system.files import write_jsonl
from tasks.judge import judge
from tests.rarlhf.evaluation.conftest import rows_of
from tests.rarlhf.small import changed
from tests.tasks.test_lora_stages import ROOT, run, write_inputs

pytestmark = pytest.mark.slow
FILE = Path("judgements", PREFERENCES)
ANSWERS = {"sft": ["the film", "the plot"], "rlhf": ["the film", "music ."]}  # the first ones are alike


@pytest.fixture
def params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    """Params with a judge, and its folder and generations in the current folder."""
    monkeypatch.chdir(tmp_path)
    tiny = load_params(ROOT / "presets" / "tiny.yaml")
    write_inputs("gpt2", tiny)
    model, tokenizer = load_causal_lm("models/base")
    tokenizer.chat_template = "{{ messages[0].content }}"
    save_model(model, tokenizer, Path("chat"))
    for method, texts in ANSWERS.items():
        Path("generations", method).mkdir(parents=True)
        rows = rows_of([[0.0]] * 2, texts=[[text] for text in texts])
        write_jsonl(Path("generations", method, "1.jsonl"), rows)
    methods = tiny.methods.model_copy(update={"start": ["sft"], "ppo": {"rlhf": {"measure": "none"}}, "fit": {}})
    others = {
        "judge.second_scorer.source": "none",
        "judge.language_model.source": "none",
        "judge.toxicity.scorer": "none",
    }
    asked = {"judge.preference.source": "chat", "judge.preference.instruction": "{prompt} A {first} B {second}"}
    return changed(tiny.model_copy(update={"methods": methods, "seeds": [1]}), others | asked)


def run_judge(params: Params) -> None:
    places = {name: Path("models", name) for name in ("base", "reward", "second_scorer")}
    run(judge, params, "judge", **places, generations=Path("generations"), out=Path("judgements"))


def test_answers_are_compared_and_equal_ones_tie(params: Params) -> None:
    run_judge(params)
    written = FILE.read_bytes()
    found = read_preferences(FILE, read_tables(Path("generations"), ["sft", "rlhf"], [1]))
    assert found is not None and found.against == "sft" and list(found.verdicts) == ["rlhf"]
    first, second = found.verdicts["rlhf"][1].tolist()
    assert first == 0.5 and second in (0.0, 0.5, 1.0)
    run_judge(params)
    assert FILE.read_bytes() == written
    run_judge(changed(params, {"judge.preference.source": "none"}))
    assert not FILE.exists()


def test_a_judge_without_a_chat_template_leaves_no_judgements(params: Params) -> None:
    with pytest.raises(
        UserError, match=r"judge\.preference\.source = 'models/base': its tokenizer has no chat template"
    ):
        run_judge(changed(params, {"judge.preference.source": "models/base"}))
    assert not Path("judgements").exists()
