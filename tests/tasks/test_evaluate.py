"""The stage on tiny models and generations of two seeds."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from shutil import copyfile

import numpy as np
import pytest
import torch

from rarlhf.config.load import load_params
from rarlhf.config.params import Params
from rarlhf.decoding.samples import Samples, write_samples
from rarlhf.evaluation.generations import read_tables
from rarlhf.evaluation.judgements import Judgement, write_judgement
from rarlhf.evaluation.perplexity import reference_perplexity
from rarlhf.evaluation.preference import Preferences
from rarlhf.evaluation.preferences_file import PREFERENCES, write_preferences
from rarlhf.models.loading import load_causal_lm
from rarlhf.system.files import write_json, write_jsonl
from rarlhf.training.base import new_model, train_tokenizer
from rarlhf.utility.results import TaskResult, Utility, write_utility
from tasks.evaluate import evaluate
from tasks.inputs import Inputs
from tasks.running.stage import Run
from tests.tasks.unrendered import unrendered

ROOT = Path(__file__).parents[2]
TEXTS = ["we liked the film .", "we saw the music ."]
PRESET = load_params(ROOT / "presets" / "tiny.yaml")
SHAPE = PRESET.model.scratch.model_copy(update={"vocab_size": 280, "context": 32, "layers": 1, "width": 8, "heads": 2})
MODELS = ("base", "sft", "rlhf/1", "rlhf/2", "ra_rlhf/1", "ra_rlhf/2")
FILES = {"data/prompts": "feed", "data/modules/rarlhf/risk": "beef", "models": "dead"}  # path -> hash
CURVE = (
    "iteration,objective/score_mean,risk/score_cvar,objective/kl,objective/kl_coef,risk/kept\n"
    "1,0.1,-1.0,0.5,1.2,8\n2,0.2,-0.9,1.0,1.1,4\n"
)


class RecordingTracker:
    """Keeps what it is given; artifacts are read at once, as their place is temporary."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}
        self.tables: dict[str, list] = {}
        self.artifacts: dict[str, Path] = {}
        self.children: dict[str, dict[str, float]] = {}

    def child(self, name: str, tags: dict[str, str], metrics: dict[str, float]) -> None:
        assert tags["stage"] == "results" and tags["method"] in name
        assert tags["mlflow.note.content"].startswith("Means over 2 seeds (1, 2)")
        self.children[tags["method"]] = metrics

    def results(self, evaluation, models: Path) -> None:
        assert models.is_dir() and evaluation["methods"].keys() == self.children.keys()

    def metrics(self, values, step: int = 0) -> None:
        self.values |= values

    def table(self, rows, path: str) -> None:
        self.tables[path] = list(rows)

    def artifact(self, path: Path, folder: str | None = None) -> None:
        assert path.exists()
        self.artifacts[path.name] = path


Stage = Callable[[Params], RecordingTracker]


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Inputs of the stage in a folder of their own, which becomes the current one."""
    monkeypatch.chdir(tmp_path)
    copyfile(ROOT / "presets" / "tiny.yaml", "params.yaml")
    for number, method in enumerate(("base", "sft", "rlhf", "ra_rlhf")):
        write_method(number, method)
    Path("data", "prompts").mkdir(parents=True)
    write_jsonl(Path("data", "prompts", "perplexity.jsonl"), [{"text": text} for text in TEXTS])
    write_json(Path("data", "prompts", "counts.json"), {"train": {"used": 3200}})
    Path("metrics").mkdir()
    write_json(Path("metrics", "second_scorer.json"), {"auc": 0.8125, "rows": 16})
    Path("data", "samples", "test").mkdir(parents=True)
    write_samples(sft_samples(), Path("data", "samples", "test"))
    return tmp_path


def sft_samples() -> Samples:
    """Sixteen scored answers of SFT to each of the prompts that the methods answered."""
    queries = [{"prompt_id": prompt, "prompt": "we saw", "prompt_score": prompt / 10} for prompt in range(20)]
    scores = torch.randn(20, 16, generator=torch.Generator().manual_seed(1))
    answers = torch.zeros(20, 16, 3, dtype=torch.int32)
    return Samples(answers, torch.full((20, 16), 3, dtype=torch.int32), scores, queries)


def write_method(number: int, method: str) -> None:
    """Models, generations and, where PPO trains the method, curves of seeds 1 and 2."""
    tokenizer = train_tokenizer(TEXTS, SHAPE)
    trained = method not in ("base", "sft")
    for place, name in enumerate((f"{method}/1", f"{method}/2") if trained else (method,)):
        model = new_model(tokenizer, SHAPE)
        with torch.no_grad():
            model.transformer.wte.weight.mul_(10.0 + 2 * number + place)
        model.save_pretrained(Path("models", name))
        tokenizer.save_pretrained(Path("models", name))
    for seed in (1, 2):
        Path("generations", method).mkdir(parents=True, exist_ok=True)
        rows = generation_rows(number, seed)
        write_jsonl(Path("generations", method, f"{seed}.jsonl"), rows)
        second = np.array([row["score"] / 2 for row in rows]).reshape(20, 2)
        write_judgement(Judgement(second), Path("judgements", method, f"{seed}.safetensors"))
        if trained:
            Path("curves", method).mkdir(parents=True, exist_ok=True)
            Path("curves", method, f"{seed}.csv").write_text(CURVE)


def generation_rows(method: int, seed: int) -> list[dict]:
    random = np.random.default_rng((method, seed))
    return [
        {
            "prompt_id": prompt, "prompt": "we saw", "prompt_score": prompt / 10, "label": 1, "sample": sample,
            "continuation": " the film", "tokens": 3, "score": float(random.normal() + method), "kl_sft": 0.1 * method,
        }
        for prompt in range(20)
        for sample in range(2)
    ]  # fmt: skip


@pytest.fixture
def run_stage(workspace: Path, evaluate_paths: dict[str, Path]) -> Stage:
    """Runs the stage on the workspace."""

    def run_stage(params: Params) -> RecordingTracker:
        tracker = RecordingTracker()
        run = Run(params, Inputs("evaluate", {}, FILES), tracker)
        evaluate.__wrapped__(run, **evaluate_paths)
        run.finish()
        return tracker

    return run_stage


@pytest.fixture
def two_seeds() -> Params:
    params = load_params(ROOT / "presets" / "tiny.yaml")
    methods = params.methods.model_copy(update={"ppo": {"rlhf": {"measure": "none"}, "ra_rlhf": {}}, "fit": {}})
    return params.model_copy(update={"seeds": [1, 2], "methods": methods})


def outputs() -> dict[str, bytes]:
    return {
        str(path): path.read_bytes()
        for folder in ("metrics", "plots", "reports")
        for path in Path(folder).rglob("*")
        if path.is_file() and path != Path("metrics", "second_scorer.json")  # which the stage reads
    }


def test_writes_its_outputs_twice_alike(
    run_stage: Stage, two_seeds: Params, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker = run_stage(two_seeds)
    first = outputs()
    assert set(first) == {
        "metrics/evaluate.json", "reports/report.html", "reports/table.md", "reports/table.tex",
        "metrics/summary/base.json", "metrics/summary/sft.json",
        "metrics/summary/rlhf.json", "metrics/summary/ra_rlhf.json",
        "reports/model_cards/sft.md", "reports/model_cards/rlhf.md", "reports/model_cards/ra_rlhf.md",
        "plots/reward_quantile.csv", "plots/reward_quantile.png", "plots/cvar_curve.csv", "plots/cvar_curve.png",
        "plots/training.csv", "plots/training.png",
        "plots/reward_distribution.png", "plots/trade_off.png", "plots/differences.png", "plots/share.png",
        "plots/kl_by_decile.png",
    }  # fmt: skip
    printed = capsys.readouterr().out
    assert "RA-RLHF" in printed
    assert printed.count("perplexity of 2 reference texts under models/") == len(MODELS)
    assert set(tracker.artifacts) == {"plots", "report.html", "table.md", "table.tex"}
    assert list(tracker.children) == ["base", "sft", "rlhf", "ra_rlhf"]
    assert tracker.children["rlhf"]["reward_mean"] == round(tracker.values["rlhf/reward_mean"], 4)
    assert tracker.children["rlhf"]["std/reward_mean"] > 0
    methods = json.loads(first["metrics/evaluate.json"])["methods"]
    assert len(tracker.tables["results.json"]) == sum(len(metrics) for metrics in methods.values())
    assert set(methods["rlhf"]) - set(methods["sft"]) == {"share_mean", "share_prompt_tail", "share_cvar_10"}
    assert "rise over SFT, divided by the rise that the best policy" in Path("reports/report.html").read_text("utf-8")
    assert "Its AUC on 16 test rows is 0.812: " in Path("reports/report.html").read_text("utf-8")
    run_stage(two_seeds)
    assert outputs() == first


def test_utility_and_win_rates_are_reported(
    run_stage: Stage, two_seeds: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    unrendered(monkeypatch)
    Path("utility").mkdir()
    run_stage(two_seeds)
    plain = Path("metrics/evaluate.json").read_bytes()
    assert b"win_rate" not in plain and b"utility_" not in plain
    assert 'id="utility"' not in Path("reports/report.html").read_text("utf-8")
    own = Utility(0.75, {"boolq": TaskResult(0.5, 0.1, 20)})
    for method in ("base", "sft", "rlhf", "ra_rlhf"):
        write_utility({1: own, 2: own}, Path("utility", f"{method}.json"))
    tables = read_tables(Path("generations"), two_seeds.methods.names, two_seeds.seeds)
    verdicts = {method: {seed: np.array([1.0, 0.5]) for seed in (1, 2)} for method in ("base", "rlhf", "ra_rlhf")}
    write_preferences(Preferences("sft", [0, 1], verdicts), tables, Path("judgements", PREFERENCES))
    tracker = run_stage(two_seeds)
    found = json.loads(Path("metrics/evaluate.json").read_text())
    assert found["methods"]["rlhf"]["win_rate"]["per_seed"] == [0.75, 0.75]
    assert found["methods"]["sft"]["utility_boolq"]["mean"] == 0.5
    assert found["preference"]["methods"]["rlhf"]["wins"] == 2
    for spreads in found["methods"].values():
        for metric in ("classification_auc", "utility_boolq", "win_rate"):
            spreads.pop(metric, None)
    del found["preference"]
    assert found == json.loads(plain)
    assert tracker.values["rlhf/win_rate"] == 0.75 and tracker.values["sft/classification_auc"] == 0.75
    assert "| method | classification AUC | boolq | win rate |" in Path("reports/table.md").read_text("utf-8")
    page = Path("reports/report.html").read_text("utf-8")
    assert '<h2 id="utility">Utility</h2>' in page and "Win rate over SFT on 2 test prompts" in page


def test_perplexity_is_that_of_each_methods_own_model(
    run_stage: Stage, two_seeds: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    unrendered(monkeypatch)
    tracker = run_stage(two_seeds)
    methods = json.loads(Path("metrics/evaluate.json").read_text())["methods"]
    for method, names in {"sft": ("sft", "sft"), "ra_rlhf": ("ra_rlhf/1", "ra_rlhf/2")}.items():
        expected = [reference_perplexity(*load_causal_lm(f"models/{name}"), TEXTS, 16, False) for name in names]
        assert methods[method]["perplexity_reference"]["per_seed"] == expected
    assert methods["sft"]["perplexity_reference"] != methods["base"]["perplexity_reference"]
    assert tracker.values["sft/perplexity_reference"] == methods["sft"]["perplexity_reference"]["mean"]


def test_report_says_where_it_comes_from_and_warns_of_real_text(
    run_stage: Stage, two_seeds: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    unrendered(monkeypatch)
    run_stage(two_seeds)
    page = Path("reports/report.html").read_text(encoding="utf-8")
    assert "data/prompts (SHA-256): feed" in page
    assert re.findall(r"[\w/]+ \(SHA-256\)", page) == ["inputs (SHA-256)", "params (SHA-256)", "data/prompts (SHA-256)"]
    assert "may be offensive" not in page
    run_stage(two_seeds.model_copy(update={"data": two_seeds.data.model_copy(update={"source": "file"})}))
    assert "may be offensive" in Path("reports/report.html").read_text(encoding="utf-8")


def test_a_method_of_the_users_own_needs_no_code(run_stage: Stage, two_seeds: Params) -> None:
    write_method(4, "cautious")
    ppo = {**two_seeds.methods.ppo, "cautious": {"alpha": 0.2}}
    tracker = run_stage(two_seeds.model_copy(update={"methods": two_seeds.methods.model_copy(update={"ppo": ppo})}))
    methods = json.loads(Path("metrics/evaluate.json").read_text())["methods"]
    assert list(methods) == ["base", "sft", "rlhf", "ra_rlhf", "cautious"]
    assert len(set(methods["cautious"]["perplexity_reference"]["per_seed"])) == 2  # a model for each seed
    assert tracker.children["cautious"]["reward_mean"] == round(methods["cautious"]["reward_mean"]["mean"], 4)
    assert Path("reports/model_cards/cautious.md").is_file()
    trained = [line.split(",")[0] for line in Path("plots/training.csv").read_text().splitlines()[1:]]
    assert list(dict.fromkeys(trained)) == ["rlhf", "ra_rlhf", "cautious"]
