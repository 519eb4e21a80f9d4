"""The stages from SFT to the report on tiny GPT-2- and GPT-J-shaped models: whole, with adapters, and on 8 bits."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from shutil import copyfile
from typing import Any, NamedTuple

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    GPTJConfig,
    GPTJForCausalLM,
)

from rarlhf.config.load import load_params
from rarlhf.config.params import Params, SampledParams
from rarlhf.models.loading import save_model
from rarlhf.system.files import read_jsonl, write_json, write_jsonl
from rarlhf.training.base import train_tokenizer
from rarlhf.training.reward import train_tokenizer as train_word_pieces
from tasks.evaluate import evaluate
from tasks.fit import fit
from tasks.generate import generate
from tasks.inputs import Inputs
from tasks.judge import judge
from tasks.plan import plan
from tasks.ppo import ppo
from tasks.running.stage import Run
from tasks.samples import samples
from tasks.sft import sft
from tests.tasks.silent import Silent
from tests.tasks.unrendered import unrendered

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
TEXTS = ["we liked the film .", "we saw the music .", "we regret the old plot and the weak end ."]
BY_PPO, BY_FIT = ("rlhf", "ra_rlhf"), "cvar_fit"
TRAINED = (*BY_PPO, BY_FIT)
METHODS = ("base", "sft", *TRAINED)
SEEDS = [1, 2]
STORED = {
    "none": {},
    "lora": {"adapter": "lora"},
    "int8": {"adapter": "lora", "quantization": "int8", "gradient_checkpointing": True},
}
PPO = {
    "iterations": 3,
    "batch_size": 6,
    "mini_batch_size": 3,
    "micro_batch_size": 3,
    "epochs": 1,
    "lr": 0.01,
    "value_warmup": 1,
    "max_new_tokens": 5,
}
SECTIONS: dict[str, dict[str, Any]] = {
    "sft": {"tokens": 16, "epochs": 2, "batch_size": 4, "micro_batch_size": 2, "lr": 0.02},
    "ppo": PPO,
    "risk": {"warmup": 1, "rho": 1.0, "alpha": 0.5},
    "methods": {
        "ppo": {"rlhf": {"measure": "none"}, "ra_rlhf": {}},
        "fit": {BY_FIT: {"measure": "cvar_ru", "of": "score", "eta": "plan"}},
    },
    "plan": {"train": SampledParams(prompts=15, samples=4), "test": SampledParams(prompts=20, samples=4), "kl": [0.3]},
    "fit": {"rounds": 2, "samples": 2, "batch_size": 16, "micro_batch_size": 8, "lr": 0.01},
    "kl": {"target": 0.3},
    "generate": {"samples": 2, "batch_size": 20},
    "evaluate": {"bootstrap_draws": 20},
    "runtime": {"threads": 1},
}


class Done(NamedTuple):
    folder: Path
    kind: str
    mode: str


def judge_all(params: Params) -> None:
    """Runs stage judge in the current folder, with the reward model as the second scorer too."""
    places = {name: Path("models", name) for name in ("base", "reward")} | {"second_scorer": Path("models/reward")}
    run(judge, params, "judge", **places, generations=Path("generations"), out=Path("judgements"))


def base_model(kind: str, size: int) -> GPT2LMHeadModel | GPTJForCausalLM:
    torch.manual_seed(2)
    shape = {"vocab_size": size, "n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 2, "initializer_range": 0.15}
    shape |= {"bos_token_id": 0, "eos_token_id": 0}
    if kind == "gpt2":
        return GPT2LMHeadModel(GPT2Config(**shape, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0))
    return GPTJForCausalLM(GPTJConfig(**shape, rotary_dim=4, tie_word_embeddings=False))


def write_inputs(kind: str, params: Params) -> None:
    """What the stages before SFT would have left, in the current folder."""
    copyfile(ROOT / "presets" / "tiny.yaml", "params.yaml")
    scratch = params.model.scratch.model_copy(update={"vocab_size": 280})
    tokenizer = train_tokenizer(TEXTS, scratch)
    save_model(base_model(kind, len(tokenizer)), tokenizer, Path("models/base"))
    reward = params.reward.model_copy(
        update={"scratch": params.reward.scratch.model_copy(update={"vocab_size": 80}), "max_length": 32}
    )
    pieces = train_word_pieces(TEXTS, reward)
    labels = {0: "NEGATIVE", 1: "POSITIVE"}
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = BertConfig(
        vocab_size=len(pieces), id2label=labels, label2id={name: i for i, name in labels.items()}, **shape
    )
    torch.manual_seed(4)
    BertForSequenceClassification(config).save_pretrained("models/reward")
    pieces.save_pretrained("models/reward")
    queries = []
    for index in range(20):
        text = " ".join(TEXTS[index % 3].split()[: 1 + index % 4])
        ids = tokenizer(text)["input_ids"]
        query = {"prompt_id": index, "prompt": text, "prompt_score": index / 10, "label": 1, "input_ids": ids}
        queries.append(query)
    for name, rows in {
        "train": queries,
        "test": queries,
        "sft": [{"text": text} for text in TEXTS * 4],
        "perplexity": [{"text": text} for text in TEXTS],
    }.items():
        Path("data/prompts").mkdir(parents=True, exist_ok=True)
        write_jsonl(Path("data/prompts", f"{name}.jsonl"), rows)
    write_json(Path("data/prompts/counts.json"), {"train": {"used": 20}})


def run(stage: Any, params: Params, name: str, **paths: object) -> None:
    run = Run(params, Inputs(name, {}, {}), Silent())  # type: ignore[arg-type]
    stage.__wrapped__(run, **paths)
    run.finish()


CASES = [(kind, mode) for kind in ("gpt2", "gptj") for mode in STORED]
SHORT = {("gpt2", "none"), ("gpt2", "int8"), ("gptj", "lora")}  # each mode once; the others are for `make test-long`


@pytest.fixture(
    scope="module",
    params=[pytest.param(case, marks=[pytest.mark.long] if case not in SHORT else []) for case in CASES],
    ids="-".join,
)
def done(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, evaluate_paths: dict[str, Path]
) -> Iterator[Done]:
    """A folder in which all stages from SFT on have run; it is the current one."""
    kind, mode = request.param
    folder = tmp_path_factory.mktemp(f"{kind}-{mode}")
    params = load_params(ROOT / "presets" / "tiny.yaml")
    updates = {name: getattr(params, name).model_copy(update=values) for name, values in SECTIONS.items()}
    updates["model"] = params.model.model_copy(update=STORED[mode])
    params = params.model_copy(update=updates | {"seeds": SEEDS})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_inputs(kind, params)
        shared = {"reward": Path("models/reward"), "prompts": Path("data/prompts")}
        places = {"base": Path("models/base"), "prompts": Path("data/prompts"), "out": Path("models/sft")}
        run(sft, params, "sft", **places, curve=Path("curves/sft.csv"))
        drawn, plans = Path("data/samples/train"), Path("data/plan")
        for split in ("train", "test"):
            out = Path("data/samples", split)
            run(samples, params, f"samples@{split}", **shared, split=split, sft=Path("models/sft"), out=out)
        run(plan, params, "plan", samples=drawn, out=plans)
        for method in TRAINED:
            for seed in SEEDS:
                out, curve = Path("models", method, str(seed)), Path("curves", method, f"{seed}.csv")
                paths = {"method": method, "seed": seed, "sft": Path("models/sft"), "out": out, "curve": curve}
                paths |= {"plan": plans / "methods" / f"{method}.json", "reward": shared["reward"]}
                if method == BY_FIT:
                    run(fit, params, f"fit@{method}-{seed}", **paths, samples=drawn)
                else:
                    run(ppo, params, f"ppo@{method}-{seed}", **paths, prompts=shared["prompts"])
        for method in METHODS:
            paths = {"method": method, "model": Path("models", method), "sft": Path("models/sft")}
            run(generate, params, f"generate@{method}", **shared, **paths, out=Path("generations", method))
        judge_all(params)
        Path("metrics").mkdir()
        write_json(Path("metrics/second_scorer.json"), {"auc": 0.9, "rows": 8})
        if (kind, mode) != ("gpt2", "none"):
            unrendered(patch)
        run(evaluate, params, "evaluate", **evaluate_paths)
        yield Done(folder, kind, mode)


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))


def test_what_is_saved_is_what_is_trained(done: Done) -> None:
    trained = ["sft", *(f"{method}/{seed}" for method in TRAINED for seed in SEEDS)]
    for name in trained:
        folder = Path("models", name)
        assert (folder / "tokenizer.json").is_file()
        if done.mode == "none":
            assert (folder / "model.safetensors").is_file()
            assert not (folder / "adapter_config.json").exists()
            continue
        assert not (folder / "model.safetensors").exists()
        assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "models/base"
        assert json.loads((folder / "backbone.json").read_text())["quantization"] == (
            "int8" if done.mode == "int8" else "none"
        )
        for file in folder.rglob("*"):
            assert str(done.folder).encode() not in file.read_bytes(), "a path of this machine"
    weights = {name: next(Path("models", name).glob("*.safetensors")).read_bytes() for name in trained}
    assert len(set(weights.values())) == len(trained)


def test_methods_differ_and_sft_is_its_own_reference(done: Done) -> None:
    results = json.loads(Path("metrics/evaluate.json").read_text())["methods"]
    assert list(results) == list(METHODS)
    assert results["sft"]["kl_sft"]["per_seed"] == [0, 0]
    for method in ("base", *TRAINED):
        assert all(abs(value) > 1e-3 for value in results[method]["kl_sft"]["per_seed"]), method
    perplexities = {method: tuple(results[method]["perplexity_reference"]["per_seed"]) for method in METHODS}
    assert len(set(perplexities.values())) == len(METHODS)
    assert perplexities["sft"][0] < perplexities["base"][0]  # SFT learned the texts
    assert perplexities["rlhf"][0] != perplexities["rlhf"][1]
    for method in METHODS:
        for seed in SEEDS:
            rows = read_jsonl(Path("generations", method, f"{seed}.jsonl"))
            assert len(rows) == 20 * 2
            assert all(0 < row["tokens"] <= 5 for row in rows)


def test_training_starts_at_its_reference(done: Done) -> None:
    for method, kept in (("rlhf", [6, 6, 6]), ("ra_rlhf", [6, 5, 3])):  # ceil(6 x .75) in the middle
        for seed in SEEDS:
            with Path("curves", method, f"{seed}.csv").open() as file:
                rows = list(csv.DictReader(file))
            assert [int(float(row["risk/kept"])) for row in rows] == kept
            assert abs(float(rows[0]["objective/kl"])) < 1e-5
            assert abs(float(rows[-1]["objective/kl"])) > 1e-4


def test_adapters_are_small(done: Done) -> None:
    whole = size(Path("models/base"))
    for method in TRAINED:
        for seed in SEEDS:
            share = size(Path("models", method, str(seed))) / whole
            assert share == pytest.approx(1.0, rel=0.01) if done.mode == "none" else share < 0.5
