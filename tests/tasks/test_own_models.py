"""The stages after `base` on other people's things: models of three families, rows without labels, a Python scorer."""

import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from shutil import copyfile
from typing import Any, NamedTuple

import pytest
import torch
from tokenizers import processors
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from rarlhf.config.load import load_params
from rarlhf.config.params import Params
from rarlhf.models.loading import load_causal_lm, save_model
from rarlhf.system.files import read_jsonl, write_json, write_jsonl
from rarlhf.training.base import train_tokenizer
from tasks.base import base
from tasks.evaluate import evaluate
from tasks.fit import fit
from tasks.generate import generate
from tasks.inputs import Inputs
from tasks.judge import judge
from tasks.plan import plan
from tasks.ppo import ppo
from tasks.prompts import prompts
from tasks.reward import reward
from tasks.running.stage import Run
from tasks.samples import samples
from tasks.sft import sft
from tests.tasks.unrendered import unrendered

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
PPO = ("rlhf", "ra_rlhf", "cvar_rlhf")
METHODS = ("base", "sft", *PPO, "cvar_fit")
WORDS = ("film", "music", "plot", "song", "cast", "story", "tone", "end")
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|endoftext|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SCORER = """\
def letters(texts):
    with open("seen.txt", "a") as file:
        file.writelines(repr(text) + "\\n" for text in texts)
    return [sum(letter in "aeiou" for letter in text) / 10 for text in texts]
"""
VALUES: dict[str, Any] = {
    "seeds": [1],
    "methods.fit": {"cvar_fit": {"measure": "mean_cvar", "of": "score", "eta": "plan", "alpha": 0.5, "mix": 0.5}},
    "runtime.threads": 1,
    "data.columns.label": None,
    "data.columns.prompt": "prompt",
    "reward.source": "python:own_letters:letters",
    "reward.watch": ["code"],
    "prompts.tokens": 6,
    "prompts.min_chars": 5,
    "prompts.train": 20,
    "prompts.validation": 4,
    "prompts.test": 20,
    "prompts.perplexity": 6,
    "sft.tokens": 24,
    "sft.epochs": 2,
    "sft.batch_size": 4,
    "sft.micro_batch_size": 4,
    "sft.lr": 0.01,
    "ppo.iterations": 3,
    "ppo.batch_size": 6,
    "ppo.mini_batch_size": 3,
    "ppo.micro_batch_size": 3,
    "ppo.epochs": 1,
    "ppo.lr": 0.01,
    "ppo.value_warmup": 1,
    "ppo.max_new_tokens": 5,
    "risk.warmup": 1,
    "risk.rho": 1.0,
    "risk.alpha": 0.5,
    "plan.train.prompts": 10,
    "plan.train.samples": 6,
    "plan.test.prompts": 10,
    "plan.test.samples": 6,
    "plan.kl": [0.5],
    "fit.rounds": 2,
    "fit.epochs": 1,
    "fit.batch_size": 12,
    "fit.micro_batch_size": 6,
    "fit.lr": 0.01,
    "generate.samples": 2,
    "evaluate.bootstrap_draws": 20,
    "judge.second_scorer.source": "none",
}


class Silent:
    """A tracker that keeps nothing."""

    def metrics(self, values: object, step: int = 0) -> None: ...
    def table(self, rows: object, path: str) -> None: ...
    def artifact(self, path: Path, folder: str | None = None) -> None: ...
    def figure(self, figure: object, path: str) -> None: ...
    def params(self, values: object) -> None: ...
    def model(self, folder: Path, params: object) -> None: ...
    def child(self, name: str, tags: object, metrics: object) -> None: ...
    def results(self, evaluation: object, models: Path) -> None: ...


class Kind(NamedTuple):
    """Which model, and how it is used."""

    name: str
    values: dict[str, Any]


KINDS = [
    Kind("neox", {}),
    Kind("llama", {"model.adapter": "lora", "sft.epochs": 0}),
    Kind("llama", {"ppo.rollout_logprobs": "decode"}),
    Kind("qwen2", {"model.adapter": "lora", "prompts.chat_template": True, "prompts.tokens": 40}),
]


def vocabulary(kind: str) -> PreTrainedTokenizerBase:
    """A tokenizer of the family's habits: Llama's begins every text and cannot pad, Qwen2's knows chats."""
    scratch = load_params(ROOT / "presets" / "tiny.yaml").model.scratch.model_copy(update={"vocab_size": 280})
    tokenizer = train_tokenizer(["we saw the film ."], scratch)
    if kind == "qwen2":
        tokenizer.chat_template = TEMPLATE
    if kind == "llama":
        tokenizer.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>"})
        tokenizer.pad_token = None
        begin = [("<s>", tokenizer.bos_token_id)]
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=begin)
    return tokenizer


def given_model(kind: str, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    torch.manual_seed(2)
    shape = {
        "vocab_size": len(tokenizer) + 3,  # embeddings are often rounded up
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 64,
        "initializer_range": 0.15,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    if kind == "neox":
        return GPTNeoXForCausalLM(GPTNeoXConfig(**shape))
    if kind == "llama":
        model = LlamaForCausalLM(LlamaConfig(**shape, num_key_value_heads=1))
        model.generation_config.temperature = 0.6  # as published ones have it, without sampling being on
        return model
    return Qwen2ForCausalLM(Qwen2Config(**shape, num_key_value_heads=1, tie_word_embeddings=True))


def changed(params: Params, values: dict[str, Any]) -> Params:
    """The params with the values at dotted keys replaced."""
    for key, value in values.items():
        *path, name = key.split(".")
        sections: list[Any] = [params]
        for part in path:
            sections.append(getattr(sections[-1], part))
        for section, part in zip(reversed(sections), [name, *reversed(path)], strict=True):
            value = section.model_copy(update={part: value})  # noqa: PLW2901
        params = value
    return params


def run(stage: Callable[..., None], params: Params, name: str, **paths: object) -> None:
    run = Run(params, Inputs(name, {}, {}), Silent())  # type: ignore[arg-type]
    stage.__wrapped__(run, **paths)  # type: ignore[attr-defined]
    run.finish()


@pytest.fixture(
    scope="module",
    params=[*KINDS[:2], pytest.param(KINDS[2], marks=pytest.mark.long), KINDS[3]],
    ids=lambda kind: f"{kind.name}-{'-'.join(kind.values) or 'plain'}",
)
def done(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kind]:
    """A folder in which all stages from `base` on have run; it is the current one."""
    kind: Kind = request.param
    folder = tmp_path_factory.mktemp(kind.name)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(folder))
        patch.delitem(sys.modules, "own_letters", raising=False)
        Path("own_letters.py").write_text(SCORER)
        tokenizer = vocabulary(kind.name)
        model = given_model(kind.name, tokenizer)
        generation, model.generation_config = model.generation_config, type(model.generation_config)()
        save_model(model, tokenizer, Path("given"))
        (Path("given") / "generation_config.json").write_text(generation.to_json_string())
        params = load_params(ROOT / "presets" / "tiny.yaml")
        params = changed(params, VALUES | {"model.source": "given"} | kind.values)
        copyfile(ROOT / "presets" / "tiny.yaml", "params.yaml")
        rows = []
        for index in range(60):
            prompt = f"we {'really ' * (index % 3)}saw"
            rows.append({"text": f"{prompt} the {WORDS[index % 8]} and {WORDS[index % 7]} .", "prompt": prompt})
        Path("data/raw").mkdir(parents=True)
        write_jsonl(Path("data/raw/train.jsonl"), rows[:36])
        write_jsonl(Path("data/raw/test.jsonl"), rows[36:])
        if kind is not KINDS[0]:
            unrendered(patch)
        run_all(params)
        yield kind


def run_all(params: Params) -> None:
    raw, models = Path("data/raw"), Path("models")
    shared = {"reward": models / "reward", "prompts": Path("data/prompts")}
    run(base, params, "base", raw=raw, out=models / "base", curve=Path("curves/base.csv"))
    places = {"raw": raw, "code": Path(), "out": models / "reward", "curve": Path("curves/reward.csv")}
    run(reward, params, "reward", **places, metrics=Path("metrics/reward.json"))
    run(prompts, params, "prompts", raw=raw, base=models / "base", reward=models / "reward", out=Path("data/prompts"))
    places = {"base": models / "base", "prompts": Path("data/prompts"), "out": models / "sft"}
    run(sft, params, "sft", **places, curve=Path("curves/sft.csv"))
    for split in ("train", "test"):
        places = {"split": split, "sft": models / "sft", "out": Path("data/samples", split)}
        run(samples, params, f"samples@{split}", **shared, **places)
    run(plan, params, "plan", samples=Path("data/samples/train"), out=Path("data/plan"))
    for method in METHODS[2:]:
        places = {
            "method": method,
            "seed": 1,
            "plan": Path(f"data/plan/methods/{method}.json"),
            "sft": models / "sft",
            "out": models / method / "1",
            "curve": Path("curves", method, "1.csv"),
        }
        if method in PPO:
            run(ppo, params, f"ppo@{method}-1", **shared, **places)
        else:
            places |= {"reward": models / "reward", "samples": Path("data/samples/train")}
            run(fit, params, f"fit@{method}-1", **places)
    for method in METHODS:
        places = {"method": method, "model": models / method, "sft": models / "sft"}
        run(generate, params, f"generate@{method}", **shared, **places, out=Path("generations", method))
    places = {"base": models / "base", "reward": models / "reward", "second_scorer": models / "second_scorer"}
    run(judge, params, "judge", **places, generations=Path("generations"), out=Path("judgements"))
    results = {
        "judgements": Path("judgements"),
        "second_scorer": Path("metrics/second_scorer.json"),
        "utility": Path("utility"),
        "metrics": Path("metrics/evaluate.json"),
        "summary": Path("metrics/summary"),
    }
    results |= {"plots": Path("plots"), "report": Path("reports/report.html"), "curves": Path("curves")}
    results |= {"table": Path("reports/table.md"), "latex": Path("reports/table.tex")}
    results |= {"cards": Path("cards"), "samples": Path("data/samples/test")}
    places = {"generations": Path("generations"), "prompts": Path("data/prompts"), "models": models}
    Path("metrics").mkdir(exist_ok=True)
    write_json(Path("metrics/second_scorer.json"), {})  # as stage `second_scorer` leaves it where there is none
    run(evaluate, params, "evaluate", **places, **results)


def test_every_method_is_measured(done: Kind) -> None:
    results = json.loads(Path("metrics/evaluate.json").read_text())["methods"]
    assert list(results) == list(METHODS)
    for method in METHODS:
        assert all(math.isfinite(spread["mean"]) for spread in results[method].values())
    assert results["sft"]["kl_sft"]["mean"] == pytest.approx(0, abs=1e-6)
    bare = done.values.get("sft.epochs") == 0
    assert (results["base"]["kl_sft"]["mean"] == pytest.approx(0, abs=1e-6)) is bare
    # Estimated from 40 answers after three iterations, it may come out below 0; of the SFT model itself it is 0.
    assert all(abs(results[method]["kl_sft"]["mean"]) > 1e-5 for method in METHODS[2:])
    assert results["ra_rlhf"]["reward_mean"]["mean"] != results["rlhf"]["reward_mean"]["mean"]


def test_generations_have_no_label_and_their_own_score(done: Kind) -> None:
    join = "\n" if done.values.get("prompts.chat_template") else ""
    for method in METHODS:
        rows = read_jsonl(Path("generations", method, "1.jsonl"))
        assert len(rows) == 20 * 2
        for row in rows:
            text = row["prompt"] + join + row["continuation"]
            assert row["label"] is None
            assert row["score"] == pytest.approx(sum(letter in "aeiou" for letter in text) / 10)
            assert row["prompt"].startswith("we ")


def test_the_score_sees_plain_text(done: Kind) -> None:
    seen = Path("seen.txt").read_text()
    assert "we saw" in seen
    assert not any(mark in seen for mark in ("<|user|>", "<|assistant|>", "<|endoftext|>", "<s>", "</s>"))


def test_queries_are_as_the_family_begins_them(done: Kind) -> None:
    tokenizer = load_causal_lm("given")[1]
    for query in read_jsonl(Path("data/prompts/train.jsonl")):
        written = tokenizer.decode(query["input_ids"])
        if done.values.get("prompts.chat_template"):
            assert written == f"<|user|>{query['prompt']}<|endoftext|><|assistant|>"
        else:
            assert written == ("<s>" if done.name == "llama" else "") + query["prompt"]
    (first, *_) = read_jsonl(Path("data/prompts/sft.jsonl"))
    if done.values.get("prompts.chat_template"):
        user, assistant = first["messages"]
        assert user["content"].startswith("we ")
        assert assistant["content"].startswith("the ")  # the answer alone, without the prompt that the text begins with
    else:
        assert first["text"].startswith("we ")


def test_the_wanted_half_is_learned(done: Kind) -> None:
    rows = read_jsonl(Path("data/raw/train.jsonl"))
    assert len(read_jsonl(Path("data/prompts/sft.jsonl"))) == len(rows) / 2
