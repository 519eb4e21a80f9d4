from copy import deepcopy

import pytest

from rarlhf.evaluation.comparisons import Evaluation, compare_methods
from rarlhf.evaluation.exports import latex_table, markdown_table, pairs_with_rlhf
from rarlhf.evaluation.tables import cell_text, difference_text


@pytest.fixture
def evaluation(tables, perplexities, params) -> Evaluation:
    return deepcopy(compare_methods(tables, perplexities, params))


def test_markdown_has_the_results_and_the_differences_to_rlhf(evaluation: Evaluation, params) -> None:
    text = markdown_table(evaluation, params.evaluate)
    reward = cell_text(evaluation["methods"]["rlhf"], "reward_mean", 0.95)
    assert f"| RLHF | {reward} | " in text
    difference = difference_text(evaluation["comparisons"]["ra_rlhf_minus_rlhf"]["metrics"]["reward_mean"])
    assert f"| RA-RLHF - RLHF | {difference} | " in text
    assert text.count("| RA-RLHF - ") == 1 and "| RLHF - SFT" not in text
    assert "†" not in text and "Seeds 1, 2, 3; 40 test prompts x 4 samples" in text
    evaluation["comparisons"]["ra_rlhf_minus_rlhf"]["like_kl"] = False
    assert "| RA-RLHF - RLHF † |" in markdown_table(evaluation, params.evaluate)
    assert "† not at like KL: " in markdown_table(evaluation, params.evaluate)


def test_latex_has_the_same_numbers(evaluation: Evaluation, params) -> None:
    evaluation["comparisons"]["ra_rlhf_minus_rlhf"]["like_kl"] = False
    evaluation["comparisons"]["ra_rlhf_minus_rlhf"]["metrics"]["reward_mean"] |= {
        "mean": -0.3,
        "interval": [-0.5, -0.1],
    }
    evaluation["comparisons"]["ra_rlhf_minus_rlhf"]["metrics"]["reward_cvar_10"] |= {
        "mean": 0.3,
        "interval": [-0.5, 0.9],
    }
    text = latex_table(evaluation, params.evaluate)
    assert text.count("\\begin{tabular}{lrrrrr}\n\\toprule") == text.count("\\bottomrule\n\\end{tabular}") == 2
    assert "method & reward & prompt tail & CVaR 10 \\% & KL, nats & perplexity \\\\" in text
    mean, half = cell_text(evaluation["methods"]["rlhf"], "reward_mean", 0.95).split(" ±")
    assert f"\nRLHF & {mean} $\\pm${half} & " in text
    row = "RA-RLHF - RLHF \\textdagger{} & \\textbf{$-$0.30 [$-$0.50, $-$0.10]} & "
    assert row in text and " & $+$0.30 [$-$0.50, 0.90] & " in text


def test_latex_marks_the_best_alone_and_escapes(evaluation: Evaluation, params) -> None:
    for comparison in evaluation["comparisons"].values():
        sign = 1 if comparison["first"] == "ra_rlhf" else -1
        comparison["metrics"]["reward_mean"] |= {"mean": sign * 1.0, "interval": sorted([sign * 0.5, sign * 1.5])}
    results = latex_table(evaluation, params.evaluate).split("\\end{tabular}")[0]
    bold = [line for line in results.splitlines() if "\\textbf" in line]
    assert len(bold) == 1 and bold[0].startswith("RA-RLHF & \\textbf{")
    own = {"my_own": evaluation["methods"]["rlhf"]}
    assert "\nmy\\_own & " in latex_table({**evaluation, "methods": own, "comparisons": {}}, params.evaluate)


def test_without_a_pair_there_is_one_table(tables, perplexities, params) -> None:
    two = compare_methods({method: tables[method] for method in ("sft", "rlhf")}, perplexities, params)
    assert pairs_with_rlhf(two) == []
    assert "Paired" not in markdown_table(two, params.evaluate)
    assert latex_table(two, params.evaluate).count("tabular}") == 2  # one beginning, one end


def test_of_one_seed_no_difference_is_marked(tables, perplexities, params) -> None:
    single = {method: {1: by_seed[1]} for method, by_seed in tables.items()}
    evaluation = compare_methods(single, perplexities, params.model_copy(update={"seeds": [1]}))
    pair = evaluation["comparisons"]["ra_rlhf_minus_rlhf"]["metrics"]
    pair["reward_mean"] |= {"mean": 0.3, "interval": [0.1, 0.5]}
    latex, markdown = latex_table(evaluation, params.evaluate), markdown_table(evaluation, params.evaluate)
    assert "$+$0.30 [0.10, 0.50]" in latex and "\\textbf" not in latex
    told = "Differences of one seed: their 95% intervals contain the error of the test prompts alone."
    assert f"% {told}\n" in latex and told in markdown and "includes zero" not in markdown
