import json
from pathlib import Path

import pytest

import flows.artifacts
from flows.artifacts import markdown_table, publish_results


def test_a_table_in_markdown() -> None:
    table = markdown_table(["method", "reward"], [["SFT", "0.18 ±0.03"], ["RLHF", "1.83"]])
    assert table == "| method | reward |\n| :-- | --: |\n| SFT | 0.18 ±0.03 |\n| RLHF | 1.83 |"


def test_results_and_figures_are_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = ("reward_mean", "reward_prompt_tail", "reward_cvar_10", "kl_sft", "perplexity_reference")
    spread = {"mean": 1.5, "std": 0.0, "n": 2, "ci95": None, "per_seed": [1.5, 1.5]}
    methods = {"sft": dict.fromkeys(names, spread)}
    Path("metrics").mkdir()
    evaluation = {"preset": "tiny", "seeds": [1, 2], "confidence": 0.95, "methods": methods}
    Path("metrics/evaluate.json").write_text(json.dumps(evaluation))
    Path("plots").mkdir()
    Path("plots/curve.png").write_bytes(b"png")
    shown: dict[str, str] = {}
    monkeypatch.setattr(
        flows.artifacts, "create_markdown_artifact", lambda text, key, description: shown.update({key: text})
    )
    publish_results()
    assert "| SFT | 1.50 | 1.50 | 1.50 | 1.50 | 1.50 |" in shown["results"]
    assert shown["figures"] == "## curve\n\n![curve](data:image/png;base64,cG5n)"
