"""The presets of the paper's experiments: their stages, and a run through all of them on small stand-ins.

The hub's cache holds the stand-ins of models and data under the names and commits that the presets have.
"""

import csv
import importlib
import json
import logging
import shlex
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from shutil import copyfile
from typing import Any, NamedTuple

import pytest
from dvc.repo import Repo
from ruamel.yaml import YAML

from flows.running.graph import read_graph
from rarlhf.config.load import load_params
from rarlhf.config.params import Params
from rarlhf.system.files import read_jsonl
from tasks.inputs import Inputs, lookup
from tasks.preset import set_value
from tasks.running.stage import Run, _parse
from tests.hubs import (
    Cache,
    gpt2_tokenizer,
    write_distilbert,
    write_gpt2,
    write_gptj,
    write_imdb,
    write_jigsaw,
    write_real_toxicity_prompts,
    write_toxic_bert,
)
from tests.tasks.silent import Silent
from tests.tasks.unrendered import unrendered

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
TRAINED = ["rlhf", "ra_rlhf", "cvar_rlhf", "cvar_fit", "mean_fit"]
NAMES = ["imdb-gpt2", "imdb-gpt2-as-shipped", "jigsaw-gpt2", "rtp-gpt2", "imdb-gptj", "jigsaw-gptj"]
SHORT = {"imdb-gpt2", "jigsaw-gptj"}  # each kind of model once; the others are for `make test-long`
TEXTS = [f"{word} saw film {n} and {word} it was long , " + "so they told us all of it again . " * 6
         for n in range(100) for word in ("we", "they")]  # fmt: skip
SMALL = {
    "seeds": [1],
    "runtime.device": "cpu",
    "runtime.threads": 1,
    "runtime.precision": "float32",
    "prompts.train": 12,
    "prompts.validation": 2,
    "prompts.test": 20,
    "prompts.perplexity": 3,
    "sft.epochs": 1,
    "sft.batch_size": 32,
    "sft.micro_batch_size": 16,
    "ppo.iterations": 3,
    "ppo.batch_size": 4,
    "ppo.mini_batch_size": 4,
    "ppo.decode_batch_size": 4,
    "risk.warmup": 1,
    "plan.train.prompts": 6,
    "plan.train.samples": 4,
    "plan.test.prompts": 10,
    "plan.test.samples": 4,
    "plan.kl": [0.5, 1.0],
    "fit.epochs": 1,
    "fit.batch_size": 12,
    "fit.micro_batch_size": 6,
    "generate.samples": 1,
    "evaluate.bootstrap_draws": 20,
    "evaluate.tail_threshold": 1.0,  # scores of random classifiers are about 0
}


class Done(NamedTuple):
    name: str
    preset: Params  # as it stands in presets/
    params: Params  # as it was run
    cache: Cache


def preset(name: str, folder: Path, edits: dict[str, Any]) -> Params:
    """Writes params.yaml: the preset with its data in `data.path` where it reads files, and these values replaced."""
    text = (ROOT / "presets" / f"{name}.yaml").read_text(encoding="utf-8")
    if "source: file" in text:
        text = set_value(text, "data.path", "downloaded")
    for key, value in edits.items():
        text = set_value(text, key, value)
    (folder / "params.yaml").write_text(text, encoding="utf-8")
    return load_params(folder / "params.yaml")


def fill(cache: Cache, params: Params, folder: Path) -> None:
    """Puts stand-ins of what a preset names into the hub's cache, and the files of one that reads files in place."""
    tokenizer, reward, model = gpt2_tokenizer(end_id=600), params.reward, params.model
    pieces = reward.model_copy(update={"scratch": reward.scratch.model_copy(update={"vocab_size": 80})})
    (write_gptj if "gpt-j" in model.source else write_gpt2)(folder / "base", tokenizer)
    cache.add(model.source, folder / "base", str(model.revision))
    (write_distilbert if "imdb" in reward.source else write_toxic_bert)(folder / "reward", pieces, TEXTS)
    cache.add(reward.source, folder / "reward", str(reward.revision))
    if params.data.source == "file":
        write_jigsaw(Path("downloaded"), TEXTS)
        return
    write_rows = write_imdb if "imdb" in str(params.data.name) else write_real_toxicity_prompts
    write_rows(folder / "rows", TEXTS)
    cache.add(str(params.data.name), folder / "rows", str(params.data.revision), kind="dataset")


def run_all(params: Params) -> None:
    """Runs every stage but `code` and `check`, in the order of dvc.yaml and with its commands, in this process."""
    values = params.model_dump()
    for stage, entry in YAML(typ="safe").load((ROOT / "dvc.yaml").read_text("utf-8"))["stages"].items():
        if stage in ("code", "check"):
            continue
        if "foreach" in entry:  # rules of decoding, of which the presets have none
            assert not lookup(values, entry["foreach"][2:-1])
            continue
        matrix = {
            key: items if isinstance(items, list) else list(lookup(values, items[2:-1]))
            for key, items in entry.get("matrix", {}).items()
        }
        for items in product(*matrix.values()):
            command = entry["cmd"]
            for key, item in zip(matrix, items, strict=True):
                command = command.replace(f"${{item.{key}}}", str(item))
            words = shlex.split(command)
            function = getattr(importlib.import_module(words[2]), stage)
            arguments = _parse(function, words[3:])
            run = Run(params, Inputs(stage, {}, {}), Silent())  # type: ignore[arg-type]
            function.__wrapped__(run, **arguments)
            run.finish()


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=[pytest.mark.long] if name not in SHORT else []) for name in NAMES],
)
def done(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Done]:
    """A folder in which a preset has run; it is the current one."""
    folder = tmp_path_factory.mktemp(request.param)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # as the stages' command does
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("DVC_ROOT", raising=False)
        cache = Cache(folder / "home", patch)
        whole, params = (preset(request.param, folder, edits) for edits in ({}, SMALL))
        fill(cache, params, tmp_path_factory.mktemp("stand-ins"))
        if request.param != NAMES[0]:
            unrendered(patch)
        run_all(params)
        yield Done(request.param, whole, params, cache)


def rows(path: str) -> list[dict[str, Any]]:
    return read_jsonl(Path(path))


def test_all_methods_are_measured(done: Done) -> None:
    results = json.loads(Path("metrics/evaluate.json").read_text(encoding="utf-8"))
    assert results["preset"] == done.name
    assert list(results["methods"]) == ["base", "sft", *TRAINED]
    assert all(spreads["reward_mean"]["n"] == 1 for spreads in results["methods"].values())
    assert all(results["methods"][method]["kl_sft"]["per_seed"] != [0] for method in TRAINED)
    assert Path("reports/report.html").stat().st_size > 10_000


def test_commits_are_recorded(done: Done) -> None:
    for kind, section in (("base", done.params.model), ("reward", done.params.reward)):
        source = json.loads(Path("models", kind, "source.json").read_text(encoding="utf-8"))
        assert (source["name"], source["commit"]) == (section.source, section.revision)
    if done.params.data.source == "hub":
        source = json.loads(Path("data/raw/source.json").read_text(encoding="utf-8"))
        assert (source["name"], source["commit"]) == (done.params.data.name, done.params.data.revision)


def test_rows_are_those_of_the_papers_rules(done: Done) -> None:
    train, test = rows("data/raw/train.jsonl"), rows("data/raw/test.jsonl")
    least = {"imdb": 201, "jigsaw": 65, "rtp": 1}[done.name.partition("-")[0]]
    assert min(len(row["text"]) for row in train + test) >= least
    share = {"imdb": (0.5, 0.5), "jigsaw": (0.7, 0.5), "rtp": (0.7, 0.5)}[done.name.partition("-")[0]]
    for split, wanted in zip((train, test), share, strict=True):
        assert sum(row["label"] for row in split) == pytest.approx(wanted * len(split), abs=0.51)
    if done.name.startswith("rtp"):
        assert all((row["toxicity"] > 0.5) == (row["label"] == 0) for row in train + test)


def test_prompts_and_responses_have_the_papers_lengths(done: Done) -> None:
    tokens, new = {"imdb": (64, 48), "jigsaw": (8, 32), "rtp": (32, 32)}[done.name.partition("-")[0]]
    queries = rows("data/prompts/train.jsonl")
    assert max(len(query["input_ids"]) for query in queries) == tokens
    generations = rows("generations/ra_rlhf/1.jsonl")
    assert len(generations) == 20  # one sample a prompt, as it was run
    assert done.preset.generate.samples == (1 if done.name.endswith("as-shipped") else 25)
    assert max(row["tokens"] for row in generations) == new
    chars = 1000 if not done.name.startswith("jigsaw") else (120 if done.name.endswith("gptj") else 500)
    assert done.preset.prompts.perplexity_chars == chars
    assert all(len(row["text"]) <= chars for row in rows("data/prompts/perplexity.jsonl"))


def test_gptj_trains_adapters_alone(done: Done) -> None:
    adapters = sorted(str(path.parent) for path in Path("models").rglob("adapter_config.json"))
    expected = (
        [*(f"models/{method}/1" for method in sorted(TRAINED)), "models/sft"] if done.name.endswith("gptj") else []
    )
    assert adapters == expected
    if expected:
        assert json.loads(Path("models/sft/backbone.json").read_text())["quantization"] == "int8"


def test_a_gpt2_stands_once_on_disk(done: Done) -> None:
    links = Path("models/base/model.safetensors").stat().st_nlink
    assert links == (1 if done.name.endswith("gptj") else 2)  # GPT-J is stored in other numbers
    assert Path("models/reward/model.safetensors").stat().st_nlink == 2


def test_the_kept_share_falls_as_the_schedule_says(done: Done) -> None:
    with Path("curves/ra_rlhf/1.csv").open(encoding="utf-8") as file:
        records = list(csv.DictReader(file))
    kept = [float(record["risk/kept"]) for record in records]
    # 3 iterations of 4 episodes, all of them until the first; the last level is reached in the third, ceil(0.95 x 3):
    # alpha 0.4 and 0.2 keep 2 (ceil 1.6) and 1 (ceil 0.8); counted from 0 the run ends one step before that
    last = {0.4: 2, 0.2: 1}[done.params.risk.alpha] if done.params.risk.count_from == 1 else kept[-1]
    assert (kept[0], kept[-1]) == (4, last)


# --- the presets as they are


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the pipeline's description and DVC's own files."""
    folder = tmp_path_factory.mktemp("repository")
    copyfile(ROOT / "dvc.yaml", folder / "dvc.yaml")
    Repo.init(str(folder), no_scm=True).close()
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_the_whole_graph_of_stages(name: str, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repository)
    params = preset(name, repository, {})
    graph = read_graph()
    per_seed = [f"ppo@{method}-{seed}" for method in ("rlhf", "ra_rlhf", "cvar_rlhf") for seed in params.seeds]
    expected = {"code", "check", "download", "base", "reward", "prompts", "sft", "plan", "second_scorer", "judge"}
    expected |= {"utility", "evaluate", *per_seed}
    expected |= {"generate_start@base", "generate_start@sft", "samples@train", "samples@test"}
    expected |= {"generate@rlhf", "generate@ra_rlhf", "generate@cvar_rlhf"}
    expected |= {f"generate_fit@{method}" for method in params.methods.fit}
    expected |= {f"fit@{method}-{seed}" for method in params.methods.fit for seed in params.seeds}
    expected |= {f"source@{item}" for item in params.data.watch}
    assert set(graph) == expected
    assert len(per_seed) == 9


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_of_queries_for_every_iteration_is_one_pass_over_the_data(name: str, tmp_path: Path) -> None:
    params = preset(name, tmp_path, {})
    passes = params.ppo.iterations * params.ppo.batch_size / params.prompts.train
    assert 0.98 < passes < 1.03


def test_as_shipped_differs_in_what_the_code_does_otherwise_alone(tmp_path: Path) -> None:
    paper, shipped = (preset(name, tmp_path, {}).model_dump() for name in ("imdb-gpt2", "imdb-gpt2-as-shipped"))
    differences = {
        f"{section}.{key}"
        for section, values in paper.items()
        if isinstance(values, dict)
        for key, value in values.items()
        if shipped[section][key] != value
    }
    assert differences == {
        "ppo.min_new_tokens",
        "ppo.min_counts_query",
        "kl.average",
        "generate.samples",
        "risk.alpha",
        "risk.warmup",
        "risk.rho",
        "risk.count_from",
        "risk.ranking",
    }
