"""Stages plan, tuned and generate_tuned with regularised fine-tuning: on GPT-2, GPT-J and Llama, whole and adapted."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from rarlhf.config.baselines import RegularisedParams
from rarlhf.config.load import load_params
from rarlhf.config.params import Params
from rarlhf.decoding.samples import read_samples
from rarlhf.models.loading import load_tokenizer, save_model
from rarlhf.risk.plan import Aim, Answers, solve
from rarlhf.risk.planned import read_settings, rounded
from rarlhf.system.files import read_jsonl, write_jsonl
from tasks.generate_tuned import generate_tuned
from tasks.plan import plan
from tasks.samples import samples
from tasks.sft import sft
from tasks.tuned import tuned
from tests.tasks.test_lora_stages import ROOT, SECTIONS, STORED, TEXTS, run, write_inputs

pytestmark = pytest.mark.slow
HEAD = {"layers": 1, "heads": 2, "batch_size": 16, "micro_batch_size": 8, "epochs": 2, "lr": 0.02}
TUNED: dict[str, dict[str, Any]] = {
    "sequential": {"by": "regularised"},
    "parallel": {"by": "regularised", "lag": 1},
    "adaptive": {"by": "regularised", "related": "prompt"},
    "tail": {"by": "regularised", "related": "label", "head": {"labels": "soft", "alpha": 0.5}},
}
REGULARISED = {"penalty": 3.0, "rounds": 2, "prompts": 8, "samples": 4, "related_quantile": 0.5}
PLACES = {"sft": Path("models/sft"), "reward": Path("models/reward"), "prompts": Path("data/prompts")}
DRAWN = Path("data/samples/train")


def params_of(mode: str) -> Params:
    params = load_params(ROOT / "presets" / "tiny.yaml")
    updates = {name: getattr(params, name).model_copy(update=SECTIONS[name]) for name in SECTIONS}
    updates["model"] = params.model.model_copy(update=STORED[mode])
    methods = {"start": ["sft"], "ppo": {}, "fit": {}, "tuned": TUNED}
    updates["methods"] = params.methods.model_copy(update=methods)
    section = params.tuning.regularised.model_copy(update=REGULARISED)
    updates["tuning"] = params.tuning.model_copy(update={"regularised": section})
    updates["head"] = params.head.model_copy(update=HEAD)
    updates["prompts"] = params.prompts.model_copy(update={"tokens": 3})
    return params.model_copy(update=updates | {"seeds": [1]})


def write_llama() -> None:
    """A base model of Llama's shape in the place of the one that is there."""
    tokenizer = load_tokenizer("models/base")
    torch.manual_seed(2)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=32, num_key_value_heads=1, **shape)
    config.bos_token_id = config.eos_token_id = 0
    save_model(LlamaForCausalLM(config), tokenizer, Path("models/base"))


@pytest.mark.parametrize(("kind", "mode"), [("gpt2", "none"), ("gptj", "int8"), ("llama", "lora")])
def test_each_method_through_its_stages(
    kind: str, mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, restored: None
) -> None:
    monkeypatch.chdir(tmp_path)
    params = params_of(mode)
    write_inputs("gptj" if kind == "gptj" else "gpt2", params)
    if kind == "llama":
        write_llama()
    worse = ["we regret the music .", "we regret the film and the weak end .", "we saw the old plot ."]
    labelled = [(text, int("regret" not in text)) for text in TEXTS * 3] + [(text, 0) for text in worse]
    Path("data/raw").mkdir(parents=True)
    write_jsonl(Path("data/raw/train.jsonl"), [{"text": text, "label": label} for text, label in labelled])
    run(sft, params, "sft", base=Path("models/base"), prompts=PLACES["prompts"], out=PLACES["sft"], curve=Path("s.csv"))
    run(samples, params, "samples@train", **PLACES, split="train", out=DRAWN)
    run(plan, params, "plan", samples=DRAWN, out=Path("data/plan"))
    weights = {}
    for method in TUNED if mode == "none" else ("adaptive", "tail"):
        settings, out = Path("data/plan/methods", f"{method}.json"), Path("models", method, "1")
        paths = {"settings": settings, "base": Path("models/base"), "raw": Path("data/raw"), "out": out}
        curve = Path("curves", f"{method}.csv")
        run(tuned, params, f"tuned@{method}-1", method=method, seed=1, **PLACES, **paths, curve=curve)
        steps = [row["step"] for row in csv.DictReader(curve.read_text().splitlines())]
        assert steps == ["1", "2", "3", "4", "5", "6"]  # 12 rows of 4 a step, twice
        name = "model.safetensors" if mode == "none" else "adapter_model.safetensors"
        weights[method] = (out / name).read_bytes()
    assert len(set(weights.values())) == len(weights)
    method = {"method": "adaptive", "model": Path("models/adaptive"), "out": Path("generations/adaptive")}
    run(generate_tuned, params, "generate_tuned@adaptive", **PLACES, **method)
    assert len(read_jsonl(Path("generations/adaptive/1.jsonl"))) == 40
    if mode == "none":
        assert type(AutoModelForCausalLM.from_pretrained("models/adaptive/1")).__name__.lower().startswith(kind)

    tail = read_settings(params.chosen_of("tail"), Path("data/plan/methods/tail.json"))
    assert isinstance(tail, RegularisedParams)
    planned = solve(Answers(read_samples(DRAWN).scores.double().numpy()), Aim(1.0, 0.5), params.kl.target)
    assert (tail.head["eta"], tail.head["kl_coef"]) == (rounded(planned.eta), rounded(planned.kl_coef))
    hard = json.loads(Path("data/plan/methods/sequential.json").read_text())
    assert hard["head"]["layers"] == 1
    assert (hard["kind"], hard["head"]["eta"]) == ("regularised", "plan")  # nothing is planned where labels are hard
