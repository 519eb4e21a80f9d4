"""The whole pipeline through the front door: `dvc repro` in a copy of the repository, offline, with a tiny model.

Each kind of stage, and `dvc`, runs once as a user's does; later ones fork from a process that has imported torch.
"""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tests.warm import warm_python

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]  # the first run is a fixture, and counts for the first test
REPOSITORY = Path(__file__).parents[1]
SEEDS = [3, 7]
PPO = ["rlhf", "ra_rlhf", "cvar_rlhf"]
FITS = ["cvar_fit"]
TRAINED = [*PPO, *FITS]
METHODS = ["base", "sft", *TRAINED]
AT_LEVEL = {"measure": "mean_cvar", "of": "score", "eta": "plan", "alpha": 0.5, "mix": 0.5}
MICRO = {
    "preset": "micro",
    "seeds": SEEDS,
    "methods.ppo.cvar_rlhf": AT_LEVEL,
    "methods.fit": dict.fromkeys(FITS, AT_LEVEL),
    "runtime.threads": 1,
    "data.train_rows": 300,
    "data.test_rows": 100,
    "data.second_scorer_rows": 20,
    "model.scratch.vocab_size": 300,
    "model.scratch.context": 32,
    "model.scratch.layers": 1,
    "model.scratch.width": 16,
    "model.scratch.epochs": 1,
    "reward.max_length": 32,
    "reward.scratch.layers": 1,
    "reward.scratch.width": 16,
    "reward.scratch.epochs": 2,
    "prompts.train": 24,
    "prompts.validation": 5,
    "prompts.test": 30,
    "prompts.perplexity": 10,
    "sft.tokens": 24,
    "sft.epochs": 1,
    "ppo.iterations": 3,
    "ppo.batch_size": 8,
    "ppo.mini_batch_size": 4,
    "ppo.micro_batch_size": 4,
    "ppo.epochs": 2,
    "ppo.value_warmup": 1,
    "ppo.max_new_tokens": 6,
    "risk.alpha": 0.5,
    "risk.warmup": 1,
    "risk.rho": 1.0,
    "kl.target": 0.5,
    "plan.train": {"prompts": 12, "samples": 8},
    "plan.test": {"prompts": 10, "samples": 8},
    "plan.kl": [0.25, 0.5],
    "fit.epochs": 1,
    "fit.batch_size": 16,
    "fit.micro_batch_size": 16,
    "generate.samples": 2,
    "judge.second_scorer.max_length": 32,
    "judge.second_scorer.scratch.width": 16,
    "judge.second_scorer.scratch.epochs": 2,
    "judge.toxicity.scorer": "reward",
    "evaluate.bootstrap_draws": 20,
    "evaluate.clusters": 2,
}
STAGES = [
    "code",
    "check",
    "download",
    "base",
    "reward",
    "second_scorer",
    "prompts",
    "sft",
    *(f"samples@{split}" for split in ("train", "test")),
    "plan",
    *(f"ppo@{method}-{seed}" for method in PPO for seed in SEEDS),
    *(f"fit@{method}-{seed}" for method in FITS for seed in SEEDS),
    *(f"generate_start@{method}" for method in ("base", "sft")),
    *(f"generate@{method}" for method in PPO),
    *(f"generate_fit@{method}" for method in FITS),
    "judge",
    "utility",
    "evaluate",
]
KEPT = (
    "metrics/evaluate.json",
    "metrics/reward.json",
    "metrics/second_scorer.json",
    *(f"metrics/summary/{name}.json" for name in METHODS),
)
METRICS = [
    "reward_mean",
    "reward_prompt_tail",
    *(f"reward_{measure}_{level}" for measure in ("var", "cvar") for level in ("05", "10", "20")),
    "kl_sft",
    "perplexity_reference",
    "dist_1",
    "dist_2",
    "dist_3",
    "length_mean",
    "repetition_4",
    "second_mean",
    "second_prompt_tail",
    "second_cvar_10",
    "perplexity_continuation",
    "toxicity_expected_max",
    "toxicity_probability",
]


@dataclass(frozen=True)
class Copy:
    """A copy of the repository in which the pipeline has run once."""

    folder: Path
    environment: dict[str, str]
    params: str
    lock: str
    metrics: dict[str, str]  # content of the files that git keeps and `dvc checkout` does not put back

    def dvc(self, *arguments: str, status: int = 0) -> str:
        """Runs dvc and returns what it printed.

        Raises: AssertionError with the output if it ends with another status.
        """
        done = subprocess.run(
            ["python3", "-m", "dvc", *arguments],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == status, done.stdout
        return done.stdout

    def change(self, edits: dict[str, Any]) -> None:
        """Writes params.yaml anew: the micro one with the dotted keys of `edits` replaced."""
        yaml = YAML()
        values = yaml.load((self.folder / "presets" / "tiny.yaml").read_text(encoding="utf-8"))
        for key, value in (MICRO | edits).items():
            *path, name = key.split(".")
            section = values
            for part in path:
                section = section[part]
            section[name] = value
        with (self.folder / "params.yaml").open("w", encoding="utf-8") as stream:
            yaml.dump(values, stream)

    def read(self, path: str) -> str:
        return (self.folder / path).read_text(encoding="utf-8")


def clean_environment(home: Path) -> dict[str, str]:
    """The caller's environment without its tools' settings; nothing is read or written outside `home`."""
    kept = {name: value for name, value in os.environ.items() if not re.match("DVC|GIT|MLFLOW|PREFECT|RARLHF", name)}
    own = {"HOME": home, "XDG_CONFIG_HOME": home, "DVC_SITE_CACHE_DIR": home / "dvc", "HF_HOME": home / "hf"}
    path = f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"
    fixed = {"PATH": path, "HF_HUB_OFFLINE": "1", "DVC_NO_ANALYTICS": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}
    return kept | {name: str(value) for name, value in own.items()} | fixed


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Copy, str]]:
    """The copy, and what the first `dvc repro` printed."""
    folder, home = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("home")
    command = ["git", "ls-files", "-co", "--exclude-standard"]
    listed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git checkout, so what belongs to the repository is not known")
    for name in listed.stdout.splitlines():
        if (REPOSITORY / name).is_file() and name != "dvc.lock":
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, folder / name)
    environment = clean_environment(home)
    subprocess.run(["git", "init", "--quiet"], cwd=folder, env=environment, check=True)
    with warm_python(environment) as python:
        environment["PATH"] = f"{python}{os.pathsep}{environment['PATH']}"
        blank = Copy(folder, environment, "", "", {})
        blank.change({})
        printed = blank.dvc("repro")
        metrics = {name: blank.read(name) for name in KEPT}
        yield Copy(folder, environment, blank.read("params.yaml"), blank.read("dvc.lock"), metrics), printed


@pytest.fixture
def copy(first: tuple[Copy, str]) -> Iterator[Copy]:
    """The copy; what a test changes in it is put back."""
    yield first[0]
    copy = first[0]
    if copy.read("params.yaml") != copy.params or copy.read("dvc.lock") != copy.lock:
        (copy.folder / "params.yaml").write_text(copy.params, encoding="utf-8")
        (copy.folder / "dvc.lock").write_text(copy.lock, encoding="utf-8")
        for path in (copy.folder / "metrics").rglob("*.json"):  # also of methods that a test added
            path.unlink()
        for name, text in copy.metrics.items():
            (copy.folder / name).write_text(text, encoding="utf-8")
        copy.dvc("checkout", "--force")


def ran(printed: str) -> list[str]:
    """Stages that dvc ran, in order."""
    return re.findall(r"^Running stage '(.+)':", printed, flags=re.MULTILINE)


def outputs(copy: Copy) -> dict[str, str]:
    """SHA-256 of every file that the pipeline made."""
    roots = ("data", "models", "curves", "generations", "metrics", "plots", "reports")
    files = [path for root in roots for path in (copy.folder / root).rglob("*") if path.is_file()]
    return {str(path.relative_to(copy.folder)): sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_first_run_runs_every_stage_once_and_check_first(first: tuple[Copy, str]) -> None:
    stages = ran(first[1])
    assert sorted(stages) == sorted(STAGES)
    assert stages[:2] == ["code", "check"]


def test_the_outputs_are_there(copy: Copy) -> None:
    models = ["base", "reward", "sft", *(f"{method}/{seed}" for method in TRAINED for seed in SEEDS)]
    for model in models:
        assert (copy.folder / "models" / model / "model.safetensors").is_file(), model
        assert (copy.folder / "models" / model / "tokenizer.json").is_file(), model
    for method in ("sft", *TRAINED):
        card = copy.read(f"reports/model_cards/{method}.md")
        assert "trained from nothing on the training rows" in card
        assert "## Results\n\n" in card and "30 test prompts x 2 samples" in card
    for method in METHODS:
        for seed in SEEDS:
            rows = [json.loads(line) for line in copy.read(f"generations/{method}/{seed}.jsonl").splitlines()]
            assert len(rows) == 30 * 2
            assert set(rows[0]) >= {
                "prompt_id", "prompt", "prompt_score", "label", "sample", "continuation", "tokens", "score", "kl_sft",
            }  # fmt: skip
    for method, kept in (
        ("rlhf", [8, 8, 8]),
        ("ra_rlhf", [8, 6, 4]),
        ("cvar_rlhf", [8, 8, 8]),
    ):  # ceil(8 x .75) in the middle
        curve = list(csv.DictReader(copy.read(f"curves/{method}/7.csv").splitlines()))
        assert [int(row["risk/kept"]) for row in curve] == kept
    for method in TRAINED:
        plan = json.loads(copy.read(f"data/plan/methods/{method}.json")).get("plan")
        assert (plan is not None) == (method in ("cvar_rlhf", "cvar_fit")), method
        assert plan is None or plan["kl"] == pytest.approx(0.5, abs=1e-3)
    for seed in SEEDS:
        losses = [float(row["loss"]) for row in csv.DictReader(copy.read(f"curves/cvar_fit/{seed}.csv").splitlines())]
        assert len(losses) == 6  # 12 prompts x 8 answers in steps of 16
    assert "</html>" in copy.read("reports/report.html")
    assert list((copy.folder / "plots").glob("*.png"))
    assert not (copy.folder / ".partial").exists() or not list((copy.folder / ".partial").iterdir())
    assert not list((copy.folder / ".checkpoints").glob("*"))


def test_the_results_have_the_promised_form(copy: Copy) -> None:
    results = json.loads(copy.read("metrics/evaluate.json"))
    assert results["preset"] == "micro"
    assert results["seeds"] == SEEDS
    assert list(results["methods"]) == METHODS
    for metrics in results["methods"].values():
        assert set(METRICS) <= set(metrics)
        for name in METRICS:
            spread = metrics[name]
            assert set(spread) >= {"mean", "std", "n", "ci95", "per_seed"}, name
            assert spread["n"] == len(spread["per_seed"]) == len(SEEDS)
            assert spread["mean"] == pytest.approx(sum(spread["per_seed"]) / len(SEEDS))
            low, high = spread["ci95"]
            assert low <= spread["mean"] <= high
    assert results["methods"]["sft"]["kl_sft"]["mean"] == 0
    for method, metrics in results["methods"].items():
        summary = json.loads(copy.read(f"metrics/summary/{method}.json"))
        assert list(summary) == ["mean", "tail", "cvar_10", "kl", "perplexity"]
        assert summary["mean"] == round(metrics["reward_mean"]["mean"], 3)


def test_no_output_holds_a_path_of_this_machine(copy: Copy) -> None:
    folder = str(copy.folder).encode()
    assert [name for name in outputs(copy) if folder in (copy.folder / name).read_bytes()] == []


def test_the_second_run_runs_nothing(copy: Copy) -> None:
    printed = copy.dvc("repro")
    assert ran(printed) == []
    assert sorted(re.findall(r"^Stage '(.+)' didn't change", printed, flags=re.MULTILINE)) == sorted(STAGES)


@pytest.mark.parametrize("stage", ["sft", "samples@train", "plan", "ppo@ra_rlhf-7", "fit@cvar_fit-7"])
def test_running_again_gives_equal_bytes(stage: str, copy: Copy) -> None:
    assert ran(copy.dvc("repro", "--force", "--single-item", stage)) == [stage]
    assert copy.read("dvc.lock") == copy.lock


def test_a_bad_value_stops_before_anything_runs_and_leaves_the_outputs(copy: Copy) -> None:
    before = outputs(copy)
    copy.change({"risk.alpha": 2.0, "ppo.lr": 0.5})
    printed = copy.dvc("repro", status=255)
    assert ran(printed) == ["check"]
    assert "risk.alpha = 2.0: should be less than or equal to 1" in printed
    assert "Traceback" not in printed
    left = outputs(copy)
    own = {"data/inputs/params.txt", "data/code/params.txt"}  # dvc takes a stage's outputs away before it runs
    assert set(before) - set(left) == own
    assert left.items() <= before.items()
    assert copy.read("dvc.lock") == copy.lock


def test_another_alpha_reruns_what_depends_on_it_and_nothing_else(copy: Copy) -> None:
    copy.change({"risk.alpha": 0.25})
    trained = [f"ppo@ra_rlhf-{seed}" for seed in SEEDS]
    assert sorted(ran(copy.dvc("repro"))) == sorted(
        ["check", "plan", *trained, "generate@ra_rlhf", "judge", "utility", "evaluate"]
    )
    curve = list(csv.DictReader(copy.read("curves/ra_rlhf/3.csv").splitlines()))
    assert [int(row["risk/kept"]) for row in curve] == [8, 5, 2]  # ceil(8 x .625), 8 x .25


def test_a_method_more_is_one_entry_in_params_and_runs_nothing_else_again(copy: Copy) -> None:
    copy.change({"methods.ppo.cautious": {"alpha": 0.25}})
    trained = [f"ppo@cautious-{seed}" for seed in SEEDS]
    assert sorted(ran(copy.dvc("repro"))) == sorted(
        ["check", "plan", *trained, "generate@cautious", "judge", "utility", "evaluate"]
    )
    results = json.loads(copy.read("metrics/evaluate.json"))
    assert list(results["methods"]) == ["base", "sft", *PPO, "cautious", *FITS]
    assert "cautious_minus_rlhf" in results["comparisons"]
    curve = list(csv.DictReader(copy.read("curves/cautious/3.csv").splitlines()))
    assert [int(row["risk/kept"]) for row in curve] == [8, 5, 2]


def test_a_reworded_text_in_the_code_trains_nothing(copy: Copy) -> None:
    trainer, message = copy.folder / "rarlhf" / "rl" / "ppo.py", copy.folder / "rarlhf" / "config" / "rules.py"
    texts = {path: path.read_text(encoding="utf-8") for path in (trainer, message)}
    try:
        trainer.write_text(
            texts[trainer].replace('"""PPO', '"""The algorithm PPO', 1) + "# a remark\n", encoding="utf-8"
        )
        message.write_text(texts[message].replace("seeds must be distinct", "each seed once"), encoding="utf-8")
        assert all(path.read_text(encoding="utf-8") != text for path, text in texts.items())
        assert ran(copy.dvc("repro")) == ["code"]
    finally:
        for path, text in texts.items():
            path.write_text(text, encoding="utf-8")


def test_a_stage_does_not_run_code_that_dvc_has_not_seen(copy: Copy) -> None:
    path = copy.folder / "rarlhf" / "models" / "policy.py"
    text = path.read_text(encoding="utf-8")
    try:
        path.write_text(f"{text}\nEDITED = 1\n", encoding="utf-8")
        printed = copy.dvc("repro", "--force", "--single-item", "sft", status=255)
        assert "error: sft: rarlhf/models/policy.py was edited after stage code had copied it" in printed
    finally:
        path.write_text(text, encoding="utf-8")
    copy.dvc("checkout", "--force")
