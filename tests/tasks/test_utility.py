"""Stage utility on tiny models, whole and with adapters: what it measures, what it leaves out, and while it is off."""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from rarlhf.config.errors import UserError
from rarlhf.config.load import load_params
from rarlhf.config.params import Params
from rarlhf.data.rows import Row
from rarlhf.models.backbone import ModelFolders, load_trainable
from rarlhf.models.loading import load_tokenizer
from rarlhf.system.files import write_jsonl
from rarlhf.system.machine import prepare
from rarlhf.utility.classifier import choose_rows, classification_auc
from rarlhf.utility.results import read_utility
from tasks.utility import utility
from tests.rarlhf.utility.own_tasks import write_task
from tests.tasks.test_lora_stages import ROOT, STORED, run, write_inputs

METHODS = {
    "start": ["base", "sft"],
    "ppo": {"rlhf": {"measure": "none"}},
    "fit": {},
    "decoded": {"best": {"rule": "best_of_n", "of": "sft"}},
}
ROWS = [Row(f"we {word} the {end}", int(word == "liked")) for end in ("film", "plot", "end", "music") * 5
        for word in ("liked", "regret")]  # fmt: skip


def params_of(mode: str, **values: Any) -> Params:
    params = load_params(ROOT / "presets" / "tiny.yaml")
    classification = params.utility.classification.model_copy(update={"rows": 30, "test_rows": 20})
    updates = {
        "model": params.model.model_copy(update=STORED[mode]),
        "methods": params.methods.model_copy(update=METHODS),
        "utility": params.utility.model_copy(update={"classification": classification} | values),
    }
    return params.model_copy(update=updates | {"seeds": [1, 2]})


@pytest.fixture(params=["none", "lora"])
def mode(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """How models are stored, in a folder with the models of all methods; it is the current one."""
    monkeypatch.chdir(tmp_path)
    write_workspace(params_of(request.param))
    return str(request.param)


def write_workspace(params: Params) -> None:
    write_inputs("gpt2", params)
    Path("data/raw").mkdir(parents=True, exist_ok=True)
    write_jsonl(Path("data/raw/train.jsonl"), (row.record() for row in ROWS))
    write_jsonl(Path("data/raw/test.jsonl"), (row.record() for row in ROWS[:30]))
    for number, (folder, start) in enumerate((("sft", "base"), ("rlhf/1", "sft"), ("rlhf/2", "sft"))):
        model = load_trainable(Path("models", start), params.model, 1, torch.device("cpu"))
        draws = torch.Generator().manual_seed(number)
        with torch.no_grad():
            for weight in model.model.parameters():
                if weight.requires_grad:
                    weight.add_(0.1 * torch.randn(weight.shape, generator=draws))
        model.save(Path("models", folder))


def run_utility(params: Params) -> dict[str, bytes]:
    run(utility, params, "utility", raw=Path("data/raw"), models=Path("models"), out=Path("utility"))
    return {path.name: path.read_bytes() for path in Path("utility").iterdir()}


@pytest.mark.slow
def test_every_model_is_measured_by_its_own_states(mode: str, capsys: pytest.CaptureFixture[str]) -> None:
    params = params_of(mode)
    written = run_utility(params)
    assert set(written) == {"base.json", "sft.json", "rlhf.json"}
    assert "utility: best is a rule of decoding" in capsys.readouterr().out
    found = read_utility(Path("utility"), params.methods.names, params.seeds)
    asked = choose_rows(ROWS, ROWS[:30], params.utility.classification)
    machine = prepare(params.runtime)
    for method, folders in {"base": ("base",) * 2, "sft": ("sft",) * 2, "rlhf": ("rlhf/1", "rlhf/2")}.items():
        for seed, folder in zip((1, 2), folders, strict=True):
            place = Path("models", folder)
            with ModelFolders(params.model, torch.device("cpu")).open(place)() as model:
                tokenizer = load_tokenizer(str(place))
                auc = classification_auc(model, tokenizer, asked, params.utility.classification, machine)
            assert found[method][seed].auc == auc and not found[method][seed].tasks
    assert run_utility(params) == written


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # lm-eval's own imports warn
@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed: extra `utility`")
def test_tasks_are_measured_of_every_model(mode: str) -> None:
    params = params_of(mode, tasks=[write_task(Path("tasks"))])
    written = run_utility(params)
    found = json.loads(written["rlhf.json"])["seeds"]
    assert list(found) == ["1", "2"]
    assert found["1"]["tasks"]["own"]["questions"] == 20 and found["1"]["classification_auc"] <= 1
    shares = {json.loads(text)["seeds"]["2"]["tasks"]["own"]["accuracy"] for text in written.values()}
    assert shares <= {number / 20 for number in range(21)}
    assert run_utility(params) == written


def test_while_it_is_off_it_says_so_and_has_no_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text((ROOT / "presets" / "tiny.yaml").read_text("utf-8"))
    monkeypatch.setitem(sys.modules, "rarlhf.utility.methods", None)  # nothing heavy is imported
    said = b"section utility of params.yaml is off: nothing is measured\n"
    assert run_utility(load_params(ROOT / "presets" / "tiny.yaml")) == {"off.txt": said}
    assert capsys.readouterr().out == said.decode()
    assert read_utility(Path("utility"), ["sft"], [1]) == {}


@pytest.mark.slow
def test_rows_of_one_class_leave_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    params = params_of("none")
    write_workspace(params)
    write_jsonl(Path("data/raw/test.jsonl"), (row.record() for row in ROWS if row.label == 1))
    with pytest.raises(UserError, match="test rows of both classes, and all 20 of them are of one class"):
        run_utility(params)
    assert not Path("utility").exists()
