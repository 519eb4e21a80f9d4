from pathlib import Path

import numpy as np
import pytest

from rarlhf.evaluation.comparisons import compare_methods
from rarlhf.evaluation.curves import cvar_curves, quantile_curves
from rarlhf.evaluation.pictures import CAPTIONS, draw_pictures, rewards_by_seed
from rarlhf.rl.metrics import RECORDED_TAIL


@pytest.mark.slow
def test_without_a_trained_method_there_are_fewer_figures(tables, perplexities, params) -> None:
    two = {method: tables[method] for method in ("base", "sft")}
    pictures = draw_pictures(two, {}, compare_methods(two, perplexities, params), params)
    assert list(pictures.shown) == ["trade_off", "reward_quantile", "cvar_curve", "reward_distribution"]
    for name, picture in pictures.shown.items():
        assert (picture.title, picture.caption) == CAPTIONS[name]
        assert picture.png.startswith(b"\x89PNG")
        assert f'aria-label="{picture.title}. ' in picture.panels[0] and len(picture.text) > 20
    assert "var(--method-base)" in pictures.sheet and "var(--method-rlhf)" not in pictures.sheet


@pytest.mark.slow
def test_a_number_is_the_same_in_the_figures_and_in_the_table(tables, perplexities, params) -> None:
    """A mean over seeds of each seed's CVaR is not the CVaR of all seeds' rewards together."""
    evaluation = compare_methods(tables, perplexities, params)
    text = draw_pictures(tables, {}, evaluation, params).shown["reward_distribution"].text
    for method, spreads in evaluation["methods"].items():
        label = {"rlhf": "RLHF", "ra_rlhf": "RA-RLHF", "sft": "SFT", "base": "Base"}[method]
        assert method == "base" or f"{label} {spreads['reward_cvar_10']['mean']:.2f}" in text
        assert cvar_curves(tables)[method][:, 9].mean() == pytest.approx(spreads["reward_cvar_10"]["mean"])
        assert quantile_curves(tables)[method][:, 9].mean() == pytest.approx(spreads["reward_prompt_tail"]["mean"])
        assert quantile_curves(tables)[method][:, 99].mean() == pytest.approx(spreads["reward_mean"]["mean"])


def test_rewards_are_by_seed(tables) -> None:
    rewards = rewards_by_seed(tables)["rlhf"]
    assert rewards.shape == (3, 160)
    assert np.array_equal(rewards[1], tables["rlhf"][2].scores.reshape(-1))


def test_the_training_tail_is_told_at_the_level_that_is_recorded() -> None:
    level = f"worst {RECORDED_TAIL * 100} %"
    page = Path(__file__).parents[3].joinpath("docs", "evaluation.md").read_text(encoding="utf-8")
    (row,) = [line for line in page.splitlines() if line.startswith("| `training.csv`")]
    assert level in CAPTIONS["training"][1]
    assert level in row
