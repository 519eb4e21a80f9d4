import json
from pathlib import Path

import pytest

import flows.artifacts
from flows.artifacts import publish_results


def test_results_and_figures_are_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = ("reward_mean", "reward_prompt_tail", "reward_cvar_10", "kl_sft", "perplexity_reference")
    spread = {"mean": 1.5, "std": 0.0, "n": 2, "ci95": None, "per_seed": [1.5, 1.5]}
    methods = {"sft": dict.fromkeys(names, spread)}
    Path("metrics").mkdir()
    evaluation = {"preset": "<b>tiny", "seeds": [1, 2], "confidence": 0.95, "methods": methods}
    Path("metrics/evaluate.json").write_text(json.dumps(evaluation))
    Path("plots").mkdir()
    Path("plots/curve.png").write_bytes(b"png")
    Path("plots/of <i> `x`.png").write_bytes(b"png")
    shown: dict[str, str] = {}

    def show(text: str, key: str, description: str) -> None:
        shown[key] = text
        assert description == "preset &lt;b&gt;tiny, 2 seeds"

    monkeypatch.setattr(flows.artifacts, "create_markdown_artifact", show)
    publish_results()
    assert "| SFT | 1.50 | 1.50 | 1.50 | 1.50 | 1.50 |" in shown["results"]
    curve, other = shown["figures"].split("\n\n## ")
    assert curve == "## curve\n\n![curve](data:image/png;base64,cG5n)"
    assert other.startswith("of &lt;i&gt; \\`x\\`\n\n![of &lt;i&gt; \\`x\\`](data:")
