"""A PPO method that no code names, `cautious: {alpha: 0.2}` in params.yaml, is shown beside the others everywhere."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from rarlhf.config.methods import FURTHER, colours_of
from rarlhf.config.params import Params
from rarlhf.evaluation import figures
from rarlhf.evaluation.cards import write_cards
from rarlhf.evaluation.comparisons import Evaluation, compare_methods, summary_of
from rarlhf.evaluation.curves import cvar_curves, quantile_curves
from rarlhf.evaluation.findings import findings, kl_warnings
from rarlhf.evaluation.forest import differences
from rarlhf.evaluation.generations import Tables
from rarlhf.evaluation.headlines import headlines
from rarlhf.evaluation.pictures import draw_pictures, rewards_by_seed
from rarlhf.evaluation.report import Origin, Texts, render_report
from rarlhf.evaluation.samples import tail_samples
from rarlhf.evaluation.statistics import over_seeds
from rarlhf.evaluation.tables import terminal_table
from rarlhf.evaluation.trade_off import trade_off

NAMES = ["Base", "SFT", "RLHF", "RA-RLHF", "cautious"]
PPO = {"rlhf": {"measure": "none"}, "ra_rlhf": {}, "cautious": {"alpha": 0.2}}
RUN = {name: np.arange(1.0, 6.0) for name in ("iteration", "score_mean", "score_cvar", "kl", "kl_coef", "kept")}
TRAINING = {method: {seed: RUN for seed in (1, 2, 3)} for method in PPO}


@pytest.fixture(scope="module")
def own(params: Params) -> Params:
    return params.model_copy(update={"methods": params.methods.model_copy(update={"ppo": PPO, "fit": {}})})


@pytest.fixture(scope="module")
def five(tables: Tables) -> Tables:
    return {**tables, "cautious": tables["ra_rlhf"]}


@pytest.fixture(scope="module")
def evaluation(five: Tables, perplexities: Mapping[str, dict[int, float]], own: Params) -> Evaluation:
    return compare_methods(five, {**perplexities, "cautious": {1: 45.0, 2: 46.0, 3: 47.0}}, own)


def test_it_is_compared_with_every_other_method_and_changes_none_of_their_numbers(
    evaluation: Evaluation, tables: Tables, perplexities: Mapping[str, dict[int, float]], params: Params
) -> None:
    others = [f"cautious_minus_{method}" for method in ("base", "sft", "rlhf", "ra_rlhf")]
    assert [pair for pair in evaluation["comparisons"] if "cautious" in pair] == others
    default = compare_methods(tables, perplexities, params)
    for key in ("methods", "comparisons"):
        shown = {name: value for name, value in evaluation[key].items() if "cautious" not in name}
        assert shown == default[key]
    assert "cautious" in summary_of(evaluation)


def test_each_method_is_compared_with_rlhf_in_a_sentence_of_its_own(evaluation: Evaluation, own: Params) -> None:
    first, second = headlines(evaluation, own.evaluate)
    assert first.startswith("RA-RLHF's ")
    assert second == first.replace("RA-RLHF", "cautious")  # their tables are the same
    said = [sentence for other in ("rlhf", "sft") for sentence in findings(evaluation, own.evaluate, other)]
    ours = [sentence for sentence in said if "cautious" in sentence]
    assert ours == [sentence.replace("RA-RLHF", "cautious") for sentence in said if "RA-RLHF" in sentence]
    assert len(ours) == 7  # on the KL, and on three rewards against RLHF and against SFT
    assert [sentence for sentence in said if "cautious" in sentence and "SFT" in sentence] == ours[4:]


def test_its_kl_is_watched(evaluation: Evaluation, own: Params) -> None:
    spreads = {**evaluation["methods"]["cautious"], "kl_sft": over_seeds([1.0, 2.0, 3.5])}  # target 2, limit 3
    methods = {**evaluation["methods"], "cautious": spreads}
    (last,) = kl_warnings({**evaluation, "methods": methods}, own.evaluate)
    assert (
        last == "cautious's KL is more than 1.5 times its target of 2 nats in 1 of 3 seeds (by seed: 1.00, 2.00, 3.50)."
    )


def test_without_rlhf_its_tail_is_compared_with_nothing(evaluation: Evaluation, own: Params) -> None:
    methods = {name: spreads for name, spreads in evaluation["methods"].items() if name != "rlhf"}
    (sentence,) = headlines({**evaluation, "methods": methods}, own.evaluate)
    assert sentence == "RLHF was not run, so the tails of RA-RLHF and cautious have nothing to be compared with."


def test_it_has_its_own_label_and_colour_in_every_figure(five: Tables, evaluation: Evaluation) -> None:
    colours = colours_of(five)
    assert colours["cautious"] == FURTHER[0]
    drawn = [
        figures.reward_quantiles(quantile_curves(five), colours),
        figures.outcome_cvar(cvar_curves(five), colours),
        figures.reward_distribution(rewards_by_seed(five), colours),
        trade_off(evaluation, colours),
        differences(evaluation, colours),
        figures.training_curves(TRAINING, colours, 2.0),
    ]
    for drawing in drawn:
        assert drawing is not None
        axes = drawing.figure().axes
        labels = [text for axis in axes for text in [*axis.texts, axis._left_title, *axis.get_yticklabels()]]
        named = [text for text in labels if text.get_text() in ("cautious", "cautious †")]
        assert named and {text.get_color() for text in named} == {FURTHER[0]}


@pytest.mark.slow
def test_it_is_in_tables_report_and_cards(five: Tables, evaluation: Evaluation, own: Params, tmp_path: Path) -> None:
    rows = terminal_table(evaluation, own.evaluate).split("\n\n")[1].splitlines()[2:]
    assert [row.split()[0] for row in rows] == NAMES
    samples = tail_samples(five, np.arange(40) < 4, 2, 1)
    pictures, texts = draw_pictures(five, TRAINING, evaluation, own), Texts(samples, None, offensive=False)
    page = render_report(evaluation, pictures, texts, {}, own, Origin("rarlhf", "", {}), {})
    assert f"<h1>{', '.join(NAMES)} compared</h1>" in page
    assert page.count("&#39;s worst answers are ") == 2
    assert f"--method-cautious: {FURTHER[0]};" in page
    assert page.count('<p class="who method-cautious">cautious ') == 2
    assert "<td>cautious - RLHF</td>" in page
    assert "<td>methods.ppo.cautious.alpha</td><td><bdi>0.2</bdi></td>" in page
    write_cards(tmp_path, evaluation, own)
    assert sorted(path.stem for path in tmp_path.iterdir()) == ["cautious", "ra_rlhf", "rlhf", "sft"]
    card = (tmp_path / "cautious.md").read_text(encoding="utf-8")
    assert "# cautious\n" in card and "stage `ppo`, method `cautious`" in card
    assert "| `risk.alpha` | 0.2 |" in card
    assert "The risk measure is `cvar`" in card
    assert "| **cautious** |" in card and "| cautious - RLHF |" in card
