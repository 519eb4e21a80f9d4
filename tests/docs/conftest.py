"""A folder as the pipeline leaves it, made once for all pages by the stages' own functions on tiny models."""

import shutil
from pathlib import Path

import pytest

from rarlhf.config.load import load_params
from rarlhf.config.params import Params
from rarlhf.system.files import write_json
from tasks.evaluate import evaluate
from tasks.fit import fit
from tasks.generate import generate
from tasks.plan import plan
from tasks.ppo import ppo
from tasks.samples import samples
from tasks.sft import sft
from tests.conftest import MadeOnce
from tests.tasks.test_lora_stages import SECTIONS, STORED, judge_all, run, write_inputs

ROOT = Path(__file__).parents[2]
PROMPTS, REWARD, SFT = Path("data/prompts"), Path("models/reward"), Path("models/sft")
SAMPLES = Path("data/samples")


def small(mode: str) -> Params:
    """Preset tiny, made smaller, with its backbone held as `mode` says."""
    params = load_params(ROOT / "presets" / "tiny.yaml")
    updates = {name: getattr(params, name).model_copy(update=values) for name, values in SECTIONS.items()}
    updates["model"] = params.model.model_copy(update=STORED[mode])
    return params.model_copy(update=updates | {"seeds": [1, 2]})


def train(params: Params, method: str, seed: int) -> None:
    """Runs stage ppo or fit in the current folder."""
    paths = {"out": Path("models", method, str(seed)), "curve": Path("curves", method, f"{seed}.csv")}
    paths |= {"plan": Path("data/plan/methods", f"{method}.json"), "sft": SFT, "reward": REWARD}
    if method in params.methods.fit:
        run(fit, params, f"fit@{method}-{seed}", method=method, seed=seed, samples=SAMPLES / "train", **paths)
    else:
        run(ppo, params, f"ppo@{method}-{seed}", method=method, seed=seed, prompts=PROMPTS, **paths)


def train_sft(params: Params) -> None:
    """Runs stages sft, samples and plan in the current folder."""
    places = {"base": Path("models/base"), "prompts": PROMPTS, "out": SFT, "curve": Path("curves/sft.csv")}
    run(sft, params, "sft", **places)
    for split in ("train", "test"):
        places = {"sft": SFT, "reward": REWARD, "prompts": PROMPTS, "out": SAMPLES / split}
        run(samples, params, f"samples@{split}", split=split, **places)
    run(plan, params, "plan", samples=SAMPLES / "train", out=Path("data/plan"))


@pytest.fixture(scope="session")
def template(made_once: MadeOnce) -> Path:
    """The folder, whole weights, two seeds, up to the report."""
    return made_once("documented", run_all)


def run_all(folder: Path) -> None:
    """Runs the stages from SFT to the report in a folder."""
    params = small("none")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_inputs("gpt2", params)
        train_sft(params)
        for method in (*params.methods.ppo, *params.methods.fit):
            for seed in params.seeds:
                train(params, method, seed)
        for method in params.methods.names:
            places = {"method": method, "model": Path("models", method), "sft": SFT, "reward": REWARD}
            run(generate, params, f"generate@{method}", **places, prompts=PROMPTS, out=Path("generations", method))
        judge_all(params)
        places = {name: Path(name) for name in ("generations", "models", "curves", "plots", "judgements", "utility")}
        files = {"metrics": "evaluate.json", "summary": "summary", "report": "report.html", "cards": "model_cards"}
        files |= {"table": "table.md", "latex": "table.tex"}
        places |= {name: Path("reports", file) for name, file in files.items()}
        second = Path("metrics/second_scorer.json")
        second.parent.mkdir(exist_ok=True)
        write_json(second, {"auc": 0.9, "rows": 8})
        run(evaluate, params, "evaluate", prompts=PROMPTS, samples=SAMPLES / "test", second_scorer=second, **places)


@pytest.fixture
def workspace(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the folder; the process stands in it."""
    folder = tmp_path / "project"
    shutil.copytree(template, folder)
    monkeypatch.chdir(folder)
    return folder
