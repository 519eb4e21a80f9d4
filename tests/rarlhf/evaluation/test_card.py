"""Model cards: what they say, that they load, and that nothing of a machine or a moment is in them."""

import re
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from rarlhf.config.fields import Section
from rarlhf.config.judging import OtherScorerParams
from rarlhf.config.methods import Method, methods_of
from rarlhf.config.params import Params
from rarlhf.evaluation.card import Card, base_of_params
from rarlhf.evaluation.cards import results_text, write_cards
from rarlhf.evaluation.comparisons import Evaluation
from rarlhf.evaluation.findings import mark_explained

HUB = {"source": "hub", "name": "some/data", "config": "plain", "revision": "abc"}


def with_values(params: Params, **sections: dict[str, object]) -> Params:
    """The params with values of some sections replaced, whether they are allowed or not."""

    def changed(section: Section, values: dict[str, object]) -> Section:
        return section.model_copy(update=values)

    return params.model_copy(update={name: changed(getattr(params, name), values) for name, values in sections.items()})


def card(params: Params, name: str = "ra_rlhf") -> Card:
    (method,) = [method for method in methods_of(params) if method.name == name]
    return Card(method, params, "RESULTS")


def test_a_card_says_what_the_model_is(params: Params) -> None:
    text = card(params).text()
    assert "# RA-RLHF\n" in text
    assert "| base | a GPT-2-shaped model (2 layers of width 64, context 64), trained from nothing on" in text
    assert "| data | text of this project's own generator" in text
    assert "| made by | the `rarlhf` pipeline, stage `ppo`, method `ra_rlhf` |" in text
    assert "| folder | `models/ra_rlhf/SEED` |" in text
    assert "| preset | tiny |" in text
    assert f"| `risk.alpha` | {params.risk.alpha} |" in text
    assert "AutoModelForCausalLM.from_pretrained" in text
    assert "\n## Results\n\nRESULTS\n" in text
    assert "PeftModel" not in text
    assert "This folder" not in text
    assert not re.search(r"\n\n\n", text)
    header = ModelCard(text).data
    assert (header.license, header.library_name, header.pipeline_tag) == (
        "apache-2.0",
        "transformers",
        "text-generation",
    )
    assert header.tags == ["rarlhf", "ra_rlhf"]


def test_the_sft_models_card(params: Params) -> None:
    text = card(params, "sft").text()
    assert "| made by | the `rarlhf` pipeline, stage `sft` |\n| folder | `models/sft` |" in text
    assert "fine-tuned on the texts of the wanted class" in text
    assert f"| `sft.lr` | {params.sft.lr} |" in text
    assert "`ppo.lr`" not in text and "reward model" not in text


@pytest.mark.parametrize(("key", "other"), [("responses", 4), ("baseline", "query"), ("averaged", 0.25)])
def test_what_ppo_does_unlike_the_paper_is_shown(key: str, other: object, params: Params) -> None:
    as_in_paper = with_values(params, ppo={"responses": 1, "baseline": "critic", "averaged": 0.0})
    for name in ("rlhf", "ra_rlhf"):
        assert f"`ppo.{key}`" not in card(as_in_paper, name).text()
        assert f"| `ppo.{key}` | {other} |" in card(with_values(as_in_paper, ppo={key: other}), name).text()
    assert f"`ppo.{key}`" not in card(with_values(params, ppo={key: other}), "mean_fit").text()


def test_names_are_shown_as_they_are(params: Params) -> None:
    nasty = "<img src=x onerror=alert(1)>|`a`\nb"
    data = {"source": "hub", "name": nasty, "config": nasty, "revision": nasty}
    named = with_values(params, data=data, reward={"source": f"python:{nasty}", "label": nasty})
    body = card(named.model_copy(update={"preset": nasty})).text().partition("\n---\n")[2]
    shown, coded = "&lt;img src=x onerror=alert(1)&gt;\\|\\`a\\` b", "``<img src=x onerror=alert(1)>\\|`a` b``"
    assert f"| preset | {shown} |\n" in body and f"| `reward.label` | {shown} |\n" in body
    assert f"| data | {coded} of the Hugging Face hub, revision {shown}, configuration {shown} |\n" in body
    assert f"| reward model | the function {coded} |\n" in body


@pytest.mark.parametrize("name", ["rlhf", "cautious"])
def test_a_card_is_written_by_the_measure_and_not_by_the_name(name: str, params: Params) -> None:
    for measure, shown, hidden in [("none", "measure", "alpha"), ("entropic", "temperature", "alpha")]:
        risk = params.risk.model_copy(update={"measure": measure})
        text = Card(Method(name, "ppo", risk), params, "").text()
        assert f"`risk.{shown}`" in text
        assert f"`risk.{hidden}`" not in text
        assert ("risk-averse" in text) == (measure != "none")
        assert ("on all episodes (RLHF)" in text) == (measure == "none")


def test_an_adapters_card_tells_of_its_base(params: Params) -> None:
    text = card(with_values(params, model={"source": "some/gpt", "revision": "def", "adapter": "lora"})).text()
    assert "| base | `some/gpt` of the Hugging Face hub, revision def |" in text
    assert "PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(" in text
    assert "`model.lora.r` | 16" in text
    header = ModelCard(text).data
    assert (header.library_name, header.base_model) == ("peft", "some/gpt")
    assert header.tags == ["rarlhf", "lora", "ra_rlhf"]


def test_what_was_made_from_the_work_of_others_is_not_given_a_licence(params: Params) -> None:
    header = ModelCard(card(with_values(params, data=HUB)).text()).data
    assert (header.license, header.datasets) == ("other", ["some/data"])
    text = card(with_values(params, model={"source": "./somewhere"})).text()
    assert ModelCard(text).data.license == "other"
    assert "Look them up before" in text
    files = params.data.model_copy(update={"source": "file", "path": "/secret/rows"})
    assert not base_of_params(params.model, files).free


@pytest.mark.parametrize("source", ["/secret/place", "./secret", "../secret", "secret"])
def test_no_path_is_in_a_card(source: str, params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("secret").mkdir()
    given = {"source": source}
    text = card(with_values(params, model=given, reward=given, data={"source": "file", "path": source})).text()
    assert "secret" not in text
    assert "a model that was given as a local folder" in text
    assert "a classifier that was given as a local folder" in text


def measured() -> Evaluation:
    """RLHF and SFT with two seeds, all metrics alike, and not at like KL."""

    def spread(*values: float) -> dict[str, object]:
        mean = sum(values) / len(values)
        return {"mean": mean, "std": 0.1, "n": len(values), "ci95": [mean - 1, mean + 1], "per_seed": list(values)}

    metrics = ("reward_mean", "reward_prompt_tail", "reward_cvar_10", "kl_sft", "perplexity_reference")
    difference = {"mean": 0.5, "n": 2, "seed_error": 0.1, "prompt_error": 0.1, "interval": [0.25, 0.75]}
    return {  # type: ignore[return-value]
        "preset": "tiny",
        "seeds": [1, 2],
        "methods": {name: {metric: spread(1.0, 1.5) for metric in metrics} for name in ("sft", "rlhf")},
        "comparisons": {
            "rlhf_minus_sft": {
                "first": "rlhf", "second": "sft", "like_kl": False, "metrics": dict.fromkeys(metrics, difference)
            }
        },
        "test": {"prompts": 30, "samples": 1, "tail_prompts": 1, "tail_rule": "lowest"},
        "confidence": 0.95,
    }  # fmt: skip


def test_results_are_those_of_the_report(params: Params) -> None:
    text = results_text("rlhf", measured(), params.evaluate)
    half = 12.706 * 0.3535534 / 2**0.5  # t of one degree of freedom times the standard error of 1 and 1.5
    assert text.startswith(
        "Seeds 1, 2; 30 test prompts x 1 sample; prompt tail: 1 prompt. Mean and half-width of the 95%"
    )
    assert f"| **RLHF** | **1.25 ±{half:.2f}** |" in text
    assert "| SFT | 1.25" in text
    assert "| RLHF - SFT † | +0.50 [0.25, 0.75] |" in text
    assert mark_explained(params.evaluate) in text


def test_every_method_that_is_trained_gets_a_card(params: Params, tmp_path: Path) -> None:
    chosen = params.methods.model_copy(update={"ppo": {"rlhf": {"measure": "none"}}, "fit": {}})
    write_cards(tmp_path, measured(), params.model_copy(update={"methods": chosen}))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rlhf.md", "sft.md"]
    text = (tmp_path / "rlhf.md").read_text(encoding="utf-8")
    assert "# RLHF\n" in text
    assert "| RLHF - SFT † |" in text
    assert "`risk.alpha`" not in text  # plain RLHF reads none


OTHERS = {
    "ppo": {"rlhf": {"measure": "none"}, "rloo": {"measure": "none", "responses": 4, "baseline": "query"}},
    "fit": {},
    "tuned": {
        "filtering": {"by": "supervised"},
        "quark": {"by": "quark", "quantiles": 3},
        "adaptive": {"by": "regularised", "related": "prompt"},
    },
    "decoded": {"best": {"rule": "best_of_n", "of": "sft"}},
}


def test_models_of_other_trainings_have_cards_and_rules_have_none(params: Params, tmp_path: Path) -> None:
    run = params.model_copy(update={"methods": params.methods.model_copy(update=OTHERS)})
    write_cards(tmp_path, measured(), run)
    texts = {path.stem: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()}
    assert sorted(texts) == ["adaptive", "filtering", "quark", "rlhf", "rloo", "sft"]
    assert "| `ppo.responses` | 4 |" in texts["rloo"] and "| `ppo.baseline` | query |" in texts["rloo"]
    assert "responses" not in texts["rlhf"]
    assert "| `tuning.quark.quantiles` | 3 |" in texts["quark"]
    assert "behind the token of the best part" in texts["quark"]
    assert "| `tuning.supervised.texts` | above |" in texts["filtering"]
    assert "by plain next-token prediction on the texts that the keys below choose" in texts["filtering"]
    assert all("PPO" not in texts[name] for name in ("filtering", "quark", "adaptive"))
    assert "| `tuning.regularised.related` | prompt |" in texts["adaptive"]
    assert "with a penalty towards the\ndistribution that has the wanted attribute" in texts["adaptive"]
    assert "on the texts of the wanted class (label 1) by plain" in texts["sft"]
    everything = run.model_copy(update={"sft": run.sft.model_copy(update={"texts": "all"})})
    assert "fine-tuned on all texts by plain" in Card(Method("sft", "sft"), everything, "").text()


@pytest.mark.parametrize(("name", "aim"), [("mean_fit", "mean score"), ("cvar_fit", "low scores")])
def test_the_card_of_a_fit_says_how_it_was_made(name: str, aim: str, params: Params) -> None:
    text = Card(Method(name, "fit", params.risk_of(name)), params, "").text()
    assert "by their weighted likelihood" in text
    assert f"\n{aim} of a reward model" in text
    assert "| `fit.rounds` |" in text
    assert "| `kl.target` |" in text
    assert "`kl.rate`" not in text
    assert "PPO" not in text
    assert ("`risk.alpha`" in text) == (name == "cvar_fit")


def test_scorers_are_named_by_their_kind(params: Params) -> None:
    other = OtherScorerParams(source="python:mine:short", weight=0.5)
    update = {"source": "python:my.scores:polite", "others": [other]}
    text = card(with_values(params, reward=update)).text()
    assert "| reward model | the function `my.scores:polite`, plus 0.5 times the function `mine:short` |" in text
