"""Stages plan, head and generate_headed on tiny models: whole, with adapters, and on 8 bits."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from rarlhf.config.load import load_params
from rarlhf.config.params import Params
from rarlhf.decoding.samples import read_samples
from rarlhf.risk.plan import Aim, Answers, solve
from rarlhf.risk.planned import read_head, rounded
from rarlhf.system.files import read_jsonl
from tasks.generate_headed import generate_headed
from tasks.head import head
from tasks.plan import plan
from tasks.samples import samples
from tasks.sft import sft
from tests.tasks.test_lora_stages import ROOT, SECTIONS, STORED, run, write_inputs

SETTINGS = {"layers": 1, "heads": 2, "batch_size": 16, "micro_batch_size": 8, "epochs": 12, "lr": 0.02}
METHODS = {
    "start": ["sft"],
    "ppo": {},
    "fit": {},
    "heads": {"good": {}, "tail": {"labels": "soft", "layers": 0}},
    "headed": {
        "nado": {"rule": "nado", "of": "sft", "head": "good", "factor": 3.0},
        "still": {"rule": "nado", "of": "sft", "head": "good", "factor": 0.0},
        "of_base": {"rule": "nado", "of": "base", "head": "tail", "factor": 3.0},
        "rect": {"rule": "rect", "of": "sft", "head": "good", "eps": 0.2},
    },
}


def params_of(mode: str) -> Params:
    params = load_params(ROOT / "presets" / "tiny.yaml")
    updates = {name: getattr(params, name).model_copy(update=SECTIONS[name]) for name in SECTIONS}
    updates["model"] = params.model.model_copy(update=STORED[mode])
    updates["methods"] = params.methods.model_copy(update=METHODS)
    updates["head"] = params.head.model_copy(update=SETTINGS)
    return params.model_copy(update=updates | {"seeds": [1]})


@pytest.fixture(scope="module", params=list(STORED))
def done(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Params]:
    """A folder in which the stages have run; it is the current one."""
    params = params_of(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp(request.param))
        write_inputs("gpt2", params)
        places = {"base": Path("models/base"), "prompts": Path("data/prompts"), "out": Path("models/sft")}
        run(sft, params, "sft", **places, curve=Path("curves/sft.csv"))
        shared = {"sft": Path("models/sft"), "reward": Path("models/reward"), "prompts": Path("data/prompts")}
        run(samples, params, "samples@train", **shared, split="train", out=Path("data/samples/train"))
        run(plan, params, "plan", samples=Path("data/samples/train"), out=Path("data/plan"))
        for name in METHODS["heads"]:
            train(params, name, name)
        for name, entry in METHODS["headed"].items():
            settings = Path("data/plan/methods", f"{name}.json")
            paths = {"model": Path("models", entry["of"]), "head": Path("models", entry["head"])}
            out = Path("generations", name)
            run(generate_headed, params, name, **shared, **paths, method=name, settings=settings, out=out)
        yield params


def train(params: Params, name: str, out: str) -> None:
    paths = {"settings": Path("data/plan/heads", f"{name}.json"), "samples": Path("data/samples/train")}
    paths |= {"sft": Path("models/sft"), "out": Path("models", out, "1"), "curve": Path("curves", out, "1.csv")}
    run(head, params, f"head@{out}-1", method=name, seed=1, **paths)


def test_the_plan_of_a_soft_head_is_that_of_soft_rejection(done: Params) -> None:
    good, tail = (read_head(Path("data/plan/heads", f"{name}.json")) for name in ("good", "tail"))
    assert good == done.head_of("good")  # nothing is planned where labels are hard
    answers = Answers(read_samples(Path("data/samples/train")).scores.double().numpy())
    planned = solve(answers, Aim(1.0, tail.alpha), done.kl.target)
    assert (tail.eta, tail.kl_coef) == (rounded(planned.eta), rounded(planned.kl_coef))
    assert json.loads(Path("data/plan/methods/nado.json").read_text()) == {
        "kind": "nado",
        "of": "sft",
        "head": "good",
        "factor": 3.0,
    }


def test_a_head_learns_and_is_the_same_twice(done: Params) -> None:
    for name in ("good", "tail"):
        with Path("curves", name, "1.csv").open() as file:
            losses = [float(row["loss"]) for row in csv.DictReader(file)]
        assert sum(losses[-3:]) < sum(losses[:3])
    train(done, "tail", "again")
    first, again = (Path("models", name, "1/model.safetensors").read_bytes() for name in ("tail", "again"))
    assert first == again


def test_what_the_rules_write(done: Params) -> None:
    rows = {name: read_jsonl(Path("generations", name, "1.jsonl")) for name in METHODS["headed"]}
    assert {len(found) for found in rows.values()} == {20 * done.generate.samples}
    assert all(abs(row["kl_sft"]) < 1e-4 for row in rows["still"])  # the SFT model itself
    for name in ("nado", "of_base", "rect"):
        assert max(abs(row["kl_sft"]) for row in rows[name]) > 1e-2
    texts = {name: [row["continuation"] for row in found] for name, found in rows.items()}
    assert texts["nado"] != texts["still"] != texts["rect"]
