"""Stages `tuned` and `generate_tuned` with Quark: whole tiny models, with adapters, on 8 bits; and a rule on top."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from rarlhf.config.load import load_params
from rarlhf.config.params import Params
from rarlhf.models.way import own_way
from rarlhf.system.files import read_jsonl, write_json
from tasks.generate_decoded import generate_decoded
from tasks.generate_tuned import generate_tuned
from tasks.sft import sft
from tasks.tuned import tuned
from tests.tasks.test_lora_stages import PPO, ROOT, STORED, run, write_inputs

pytestmark = pytest.mark.slow
SFT = {"tokens": 16, "epochs": 1, "batch_size": 4, "micro_batch_size": 2, "lr": 0.01}
QUARK = {"rounds": 2, "prompts": 10, "steps": 2, "quantiles": 2, "batch_size": 4, "micro_batch_size": 2, "lr": 0.01}


@pytest.fixture
def params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, restored: None) -> Params:
    monkeypatch.chdir(tmp_path)
    params = load_params(ROOT / "presets" / "tiny.yaml")
    methods: dict[str, Any] = {
        "tuned": {"quark": {"by": "quark", **QUARK}},
        "decoded": {"best": {"rule": "best_of_n", "of": "quark", "n": 3}},
    }
    updates: dict[str, dict[str, Any]] = {
        "ppo": PPO,
        "sft": SFT,
        "methods": methods,
        "generate": {"samples": 2, "batch_size": 20},
        "runtime": {"threads": 1},
    }
    sections = {name: getattr(params, name).model_copy(update=values) for name, values in updates.items()}
    return params.model_copy(update=sections | {"seeds": [1]})


@pytest.mark.parametrize("kind", ["gpt2", "gptj"])
@pytest.mark.parametrize("mode", STORED)
def test_quark_is_trained_and_decoded_behind_its_best_token(kind: str, mode: str, params: Params) -> None:
    params = params.model_copy(update={"model": params.model.model_copy(update=STORED[mode])})
    write_inputs(kind, params)
    places = {"sft": Path("models/sft"), "reward": Path("models/reward"), "prompts": Path("data/prompts")}
    run(sft, params, "sft", base=Path("models/base"), prompts=places["prompts"], out=places["sft"], curve=Path("s.csv"))
    out, curve, plans = Path("models/quark/1"), Path("curves/quark/1.csv"), Path("data/plan/methods")
    plans.mkdir(parents=True)
    for name in ("quark", "best"):
        write_json(plans / f"{name}.json", params.chosen_of(name).settings.model_dump(mode="json"))
    own = {"method": "quark", "seed": 1, "settings": plans / "quark.json", "base": Path("models/base")}
    run(tuned, params, "tuned@quark-1", **own, **places, raw=Path("data/raw"), out=out, curve=curve)
    rows = list(csv.DictReader(curve.read_text().splitlines()))
    assert [row["step"] for row in rows] == ["1", "2", "3", "4"]
    size = len(AutoTokenizer.from_pretrained("models/sft"))
    if mode == "none":
        assert AutoModelForCausalLM.from_pretrained(out).get_input_embeddings().weight.shape[0] == size + 2
    else:
        assert json.loads((out / "adapter_config.json").read_text())["trainable_token_indices"] == [size, size + 1]
    assert list(own_way(out).before) == [size + 1]

    shared = {**places, "model": Path("models/quark")}
    run(generate_tuned, params, "generate_tuned@quark", method="quark", **shared, out=Path("generations/quark"))
    best = {"method": "best", "settings": plans / "best.json", "out": Path("generations/best")}
    run(generate_decoded, params, "generate_decoded@best", **best, **shared)
    plain, chosen = (read_jsonl(Path("generations", name, "1.jsonl")) for name in ("quark", "best"))
    assert len(plain) == len(chosen) == 40
    assert all("quark_" not in row["prompt"] + row["continuation"] for row in plain)
    assert sum(abs(row["kl_sft"]) for row in plain) > 0.1
    assert all(
        one["score"] <= best["score"] + 1e-6 for one, best in zip(plain, chosen, strict=True)
    )  # one of the three draws
    assert any(one["score"] < best["score"] - 1e-6 for one, best in zip(plain, chosen, strict=True))
