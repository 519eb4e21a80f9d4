"""Model cards: what they say, that they load, and that nothing of a machine or a moment is in them."""

import re
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from rarlhf.config.params import DataParams, ModelParams, OtherScorerParams, Params, Section
from rarlhf.evaluation.card import Base, Card, base_of_folder, base_of_params
from rarlhf.evaluation.cards import card_with_results
from rarlhf.evaluation.evaluate import Evaluation
from rarlhf.evaluation.findings import UNLIKE_KL

HUB = {"source": "hub", "name": "some/data", "config": "plain", "revision": "abc"}


def sections(params: Params) -> dict[str, Section]:
    return {"ppo": params.ppo, "kl": params.kl, "risk": params.risk, "reward": params.reward}


def card(
    params: Params,
    method: str = "ra_rlhf",
    base: Base | None = None,
    data: DataParams | None = None,
    model: ModelParams | None = None,
) -> Card:
    given = base or base_of_params(params.model, params.data)
    return Card(method, 3, given, data or params.data, model or params.model, sections(params))


def test_a_card_says_what_the_model_is(params: Params) -> None:
    text = card(params).text()
    assert "# RA-RLHF, seed 3\n" in text
    assert "| base | a GPT-2-shaped model (2 layers of width 64, context 64), trained from nothing on" in text
    assert "| data | text of this project's own generator" in text
    assert f"| `risk.alpha` | {params.risk.alpha} |" in text
    assert "AutoModelForCausalLM.from_pretrained" in text
    assert "PeftModel" not in text
    assert not re.search(r"\n\n\n", text)
    header = ModelCard(text).data
    assert (header.license, header.library_name, header.pipeline_tag) == (
        "apache-2.0",
        "transformers",
        "text-generation",
    )
    assert header.tags == ["rarlhf", "ra_rlhf"]


def test_names_are_shown_as_they_are(params: Params) -> None:
    nasty = "<img src=x onerror=alert(1)>|`a`\nb"
    data = params.data.model_copy(update={"source": "hub", "name": nasty, "config": nasty, "revision": nasty})
    reward = params.reward.model_copy(update={"source": f"python:{nasty}", "label": nasty})
    made = Card("ra_rlhf", 3, Base("b", None, True), data, params.model, sections(params) | {"reward": reward}, nasty)
    body = made.text().partition("\n---\n")[2]
    shown, coded = "&lt;img src=x onerror=alert(1)&gt;\\|\\`a\\` b", "``<img src=x onerror=alert(1)>\\|`a` b``"
    assert f"| preset | {shown} |\n" in body and f"| `reward.label` | {shown} |\n" in body
    assert f"| data | {coded} of the Hugging Face hub, revision {shown}, configuration {shown} |\n" in body
    assert f"| reward model | the function {coded} |\n" in body


def test_a_measure_shows_the_values_it_reads(params: Params) -> None:
    for measure, shown, hidden in [("none", "measure", "alpha"), ("entropic", "temperature", "alpha")]:
        risk = params.risk.model_copy(update={"measure": measure})
        text = Card("rlhf", 1, Base("b", None, True), params.data, params.model, {"risk": risk}).text()
        assert f"`risk.{shown}`" in text
        assert f"`risk.{hidden}`" not in text
        assert ("risk-averse" in text) == (measure != "none")


def test_an_adapters_card_tells_of_its_base(params: Params) -> None:
    model = params.model.model_copy(update={"source": "some/gpt", "revision": "def", "adapter": "lora"})
    text = card(params, base=base_of_params(model, params.data), model=model).text()
    assert "| base | `some/gpt` of the Hugging Face hub, revision def |" in text
    assert "PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(" in text
    assert "`model.lora.r` | 16" in text
    header = ModelCard(text).data
    assert (header.library_name, header.base_model) == ("peft", "some/gpt")


def test_what_stands_on_the_work_of_others_is_not_given_a_licence(params: Params) -> None:
    data = params.data.model_copy(update=HUB)
    header = ModelCard(card(params, data=data).text()).data
    assert (header.license, header.datasets) == ("other", ["some/data"])
    given = params.model.model_copy(update={"source": "./somewhere"})
    text = card(params, base=base_of_params(given, params.data)).text()
    assert ModelCard(text).data.license == "other"
    assert "Look them up before" in text
    files = params.data.model_copy(update={"source": "file", "path": "/secret/rows"})
    assert not base_of_params(params.model, files).free


@pytest.mark.parametrize("source", ["/secret/place", "./secret", "../secret", "secret"])
def test_no_path_is_in_a_card(source: str, params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("secret").mkdir()
    given = params.model.model_copy(update={"source": source})
    data = params.data.model_copy(update={"source": "file", "path": source})
    scored = params.model_copy(update={"reward": params.reward.model_copy(update={"source": source})})
    text = card(scored, base=base_of_params(given, data), data=data).text()
    assert "secret" not in text
    assert "a model that was given as a local folder" in text
    assert "a classifier that was given as a local folder" in text


def test_cards_hand_the_base_on(params: Params, tmp_path: Path) -> None:
    model = params.model.model_copy(update={"source": "some/gpt", "revision": "def"})
    for base in (base_of_params(model, params.data), base_of_params(params.model, params.data)):
        for method in ("base", "sft", "rlhf"):
            handed = base if method == "base" else base_of_folder(tmp_path)
            card(params, method, base=handed).write(tmp_path)
            assert base_of_folder(tmp_path) == base
    assert base_of_folder(tmp_path / "nowhere") == Base("not described", None, False)


def test_results_stand_in_the_evaluations_cards(params: Params) -> None:
    def spread(*values: float) -> dict[str, object]:
        mean = sum(values) / len(values)
        return {"mean": mean, "std": 0.1, "n": len(values), "ci95": [mean - 1, mean + 1], "per_seed": list(values)}

    metrics = ("reward_mean", "reward_prompt_tail", "reward_cvar_10", "kl_sft", "perplexity_reference")
    difference = {"mean": 0.5, "n": 2, "seed_error": 0.1, "prompt_error": 0.1, "interval": [0.25, 0.75]}
    evaluation: Evaluation = {  # type: ignore[typeddict-item]
        "preset": "tiny",
        "seeds": [1, 2],
        "methods": {name: {metric: spread(1.0, 1.5) for metric in metrics} for name in ("sft", "rlhf")},
        "comparisons": {
            "rlhf_minus_sft": {
                "first": "rlhf", "second": "sft", "like_kl": False, "metrics": dict.fromkeys(metrics, difference)
            }
        },
        "test": {"prompts": 30, "samples": 2, "tail_prompts": 3, "tail_rule": "lowest"},
        "confidence": 0.95,
    }  # fmt: skip
    text = card_with_results("rlhf", Base("b", None, True), evaluation, params).text()
    half = 12.706 * 0.3535534 / 2**0.5  # t of one degree of freedom times the standard error of 1 and 1.5
    assert f"| **RLHF** | **1.25 ±{half:.2f}** |" in text
    assert "| SFT | 1.25" in text
    assert "| RLHF - SFT † | +0.50 [0.25, 0.75] |" in text
    assert UNLIKE_KL in text
    assert "| preset | tiny |" in text
    assert "`risk.alpha`" not in text  # plain RLHF reads none
    assert "reports/model_cards" not in text
    assert "# RLHF\n" in text


def test_scorers_are_named_by_their_kind(params: Params) -> None:
    other = OtherScorerParams(source="python:mine:short", weight=0.5)
    update = {"source": "python:my.scores:polite", "others": [other]}
    text = card(params.model_copy(update={"reward": params.reward.model_copy(update=update)})).text()
    assert "| reward model | the function `my.scores:polite`, plus 0.5 times the function `mine:short` |" in text
