"""Stages tuned, generate_tuned, generate_decoded and generate_guided after the stages before them, on tiny models."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from rarlhf.config.load import load_params
from rarlhf.config.params import Params
from rarlhf.evaluation.generations import read_tables
from rarlhf.system.files import read_jsonl, write_jsonl
from tasks.generate_decoded import generate_decoded
from tasks.generate_guided import generate_guided
from tasks.generate_start import generate_start
from tasks.generate_tuned import generate_tuned
from tasks.plan import plan
from tasks.samples import samples
from tasks.sft import sft
from tasks.tuned import tuned
from tests.tasks.test_lora_stages import ROOT, SECTIONS, STORED, TEXTS, run, write_inputs

SEEDS = [1, 2]
TUNED = {
    "expert": {"by": "supervised", "texts": "wanted"},
    "anti_expert": {"by": "supervised", "texts": "unwanted"},
    "filtering": {"by": "supervised", "texts": "above", "quantile": 0.4},
}
DECODED = {
    "prompted": {"rule": "prompted", "of": "sft"},
    "best": {"rule": "best_of_n", "of": "expert", "n": 3},
    "rejection": {"rule": "rejection", "of": "sft", "n": 6},
    "soft": {"rule": "soft_rejection", "of": "sft", "n": 6, "alpha": 0.5},
    "self_debias": {"rule": "self_debias", "of": "sft", "attributes": ["old", "weak"]},
}
GUIDED = {
    name: {"rule": name, "of": "sft", "expert": "expert", "anti_expert": "anti_expert"} for name in ("dexperts", "gedi")
}
PLACES = {"sft": Path("models/sft"), "reward": Path("models/reward"), "prompts": Path("data/prompts")}


def section(params: Params) -> Params:
    """The parameters of these runs."""
    methods = {"ppo": {}, "fit": {}, "tuned": TUNED, "decoded": DECODED, "guided": GUIDED}
    updates = {name: getattr(params, name).model_copy(update=values) for name, values in SECTIONS.items()}
    updates["methods"] = params.methods.model_copy(update={"start": ["sft"], **methods})
    return params.model_copy(update=updates | {"seeds": SEEDS})


def settings(method: str) -> Path:
    return Path("data/plan/methods", f"{method}.json")


def train(params: Params) -> None:
    """SFT, its answers and the plan, then every training."""
    places = {"base": Path("models/base"), "prompts": PLACES["prompts"], "out": PLACES["sft"]}
    run(sft, params, "sft", **places, curve=Path("curves/sft.csv"))
    run(samples, params, "samples@train", **PLACES, split="train", out=Path("data/samples/train"))
    run(plan, params, "plan", samples=Path("data/samples/train"), out=Path("data/plan"))
    for method in TUNED:
        for seed in SEEDS:
            out, curve = Path("models", method, str(seed)), Path("curves", method, f"{seed}.csv")
            paths = {"method": method, "seed": seed, "settings": settings(method), "out": out, "curve": curve}
            run(
                tuned,
                params,
                f"tuned@{method}-{seed}",
                base=Path("models/base"),
                raw=Path("data/raw"),
                **PLACES,
                **paths,
            )


def generate_all(params: Params) -> None:
    """The stages that draw continuations."""
    for method in ("sft", *TUNED):
        stage = generate_start if method == "sft" else generate_tuned
        paths = {"method": method, "model": Path("models", method), "out": Path("generations", method)}
        run(stage, params, f"{stage.__name__}@{method}", **PLACES, **paths)
    for method, entry in (DECODED | GUIDED).items():
        paths = {"method": method, "settings": settings(method), "out": Path("generations", method)}
        models = {key: Path("models", name) for key, name in entry.items() if key in {"expert", "anti_expert"}}
        stage = generate_guided if models else generate_decoded
        paths |= models | {"model": Path("models", str(entry["of"]))}
        run(stage, params, f"{stage.__name__}@{method}", **PLACES, **paths)


@pytest.fixture(scope="module", params=["none", "lora"])
def done(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Params]:
    """The parameters of a folder in which all stages have run; it is the current one."""
    params = section(load_params(ROOT / "presets" / "tiny.yaml"))
    params = params.model_copy(update={"model": params.model.model_copy(update=STORED[request.param])})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp(f"ruled-{request.param}"))
        write_inputs("gpt2", params)
        Path("data/raw").mkdir()
        worse = ["we regret the music .", "we regret the film and the weak end .", "we saw the old plot ."]
        labelled = [(text, int("regret" not in text)) for text in TEXTS * 3] + [(text, 0) for text in worse]
        rows = [{"text": text, "label": label} for text, label in labelled]
        write_jsonl(Path("data/raw/train.jsonl"), rows)
        train(params)
        generate_all(params)
        yield params


def rows(method: str, seed: int) -> list[dict[str, object]]:
    return read_jsonl(Path("generations", method, f"{seed}.jsonl"))


def test_all_methods_answer_the_same_prompts_and_have_a_kl(done: Params) -> None:
    methods = ["sft", *TUNED, *DECODED, *GUIDED]
    read_tables(Path("generations"), methods, SEEDS)  # refuses what the evaluation could not compare
    for method in methods:
        for seed in SEEDS:
            made = rows(method, seed)
            assert len(made) == 20 * 2
            assert all(math.isfinite(float(str(row["kl_sft"]))) for row in made)
            assert ("draws" in made[0]) is (method in DECODED | GUIDED)
    texts = {method: tuple(row["continuation"] for seed in SEEDS for row in rows(method, seed)) for method in methods}
    assert len(set(texts.values())) == len(methods)


def test_only_rules_that_choose_draw_more_than_once(done: Params) -> None:
    draws = {method: {row["draws"] for row in rows(method, 1)} for method in DECODED | GUIDED}
    assert draws["best"] == {3}
    for method in ("rejection", "soft"):
        assert len(draws[method]) > 1
        assert max(int(str(count)) for count in draws[method]) <= 6
    for method in ("prompted", "self_debias", *GUIDED):
        assert draws[method] == {1}


def test_a_plan_gives_the_numbers_that_rules_need(done: Params) -> None:
    for method, keys in {"rejection": ["threshold"], "soft": ["eta", "kl_coef"]}.items():
        values = json.loads(settings(method).read_text())
        assert all(isinstance(values[key], float) for key in keys)
        assert values["of"] == "sft"
    threshold = json.loads(settings("rejection").read_text())["threshold"]
    for row in rows("rejection", 1):
        assert float(str(row["score"])) >= threshold or row["draws"] == 6


def test_every_training_learned_other_texts_with_each_seed(done: Params) -> None:
    folders = [Path("models", method, str(seed)) for method in TUNED for seed in SEEDS]
    weights = {next(folder.glob("*.safetensors")).read_bytes() for folder in folders}
    assert len(weights) == len(folders)
    for folder in folders:
        assert (folder / "adapter_config.json").exists() is (done.model.adapter == "lora")
        assert Path("curves", folder.parent.name, f"{folder.name}.csv").read_text().count("\n") > 2


def test_a_rule_on_a_trained_model_reads_the_model_of_each_seed(done: Params) -> None:
    """Its draws are among those of plain sampling from that model, the first of which stage generate_tuned keeps."""
    for seed in SEEDS:
        plain, best = rows("expert", seed), rows("best", seed)
        assert all(float(str(b["score"])) >= float(str(a["score"])) for a, b in zip(plain, best, strict=True))
        assert any(a["continuation"] == b["continuation"] for a, b in zip(plain, best, strict=True))
        assert any(a["continuation"] != b["continuation"] for a, b in zip(plain, best, strict=True))
