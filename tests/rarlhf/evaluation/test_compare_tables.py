"""What a comparison of two runs says, in a terminal and as Markdown."""

from dataclasses import replace

import pytest

from rarlhf.config.load import load_params
from rarlhf.evaluation.compare import ComparedPair, RunComparison
from rarlhf.evaluation.compare_tables import (
    WIDTH,
    changed_rows,
    equal_methods,
    markdown,
    notes,
    pair_name,
    rows_of,
    sentences,
    terminal,
)
from rarlhf.evaluation.names import COMPARED
from rarlhf.evaluation.statistics import over_seeds, paired_difference
from tests.rarlhf.evaluation.runs import TEST, TINY

EVEN, HIGHER = [1.0, 2.0, 3.0], [3.0, 4.1, 4.9]  # apart by 2.0, 2.1, 1.9: an interval of 2 +- 4.30 x 0.1 / sqrt(3)


def pair(*methods: str, like_kl: bool = True, **second: list[float]) -> ComparedPair:
    """Every metric as `EVEN` in both, but as given in B."""
    values = {metric: (EVEN, second.get(metric, EVEN)) for metric in COMPARED}
    spreads = [{metric: over_seeds(both[side]) for metric, both in values.items()} for side in (0, 1)]
    differences = {metric: paired_difference(other, one, 0.0, 0.95) for metric, (one, other) in values.items()}
    first, last = methods[0], methods[-1]
    return ComparedPair((first, last), (spreads[0], spreads[1]), differences, like_kl)


def of(*pairs: ComparedPair, **changed: object) -> RunComparison:
    comparison = RunComparison(("main", "exp|1"), pairs, [1, 2, 3], TEST, load_params(TINY), True, [], [])
    return replace(comparison, **changed)


def test_a_row_has_both_values_and_their_difference() -> None:
    first, *_ = rows_of(pair("rlhf", reward_mean=HIGHER), 0.95)
    assert first.metric == "reward"
    assert first.cells == ("2.00 ±2.48", "4.00 ±2.37", "+2.00", "[1.75, 2.25]") and first.apart
    assert rows_of(pair("rlhf"), 0.95)[0].cells[2:] == ("+0.00", "–")


def test_names_say_two_methods_and_unlike_kl() -> None:
    assert pair_name(pair("rlhf")) == "RLHF"
    assert pair_name(pair("rlhf", "ra_rlhf", like_kl=False)) == "RA-RLHF less RLHF †"


def test_sentences_say_what_the_intervals_do() -> None:
    wide = {"perplexity_reference": HIGHER, "reward_mean": HIGHER, "reward_cvar_10": [0.0, 9.0, 0.0]}
    (same,) = sentences(of(pair("rlhf", **wide), pair("sft")))
    assert same == (
        "RLHF: B is ahead of A on mean reward; behind A on reference perplexity; not distinguishable from A on "
        "outcome CVaR at 10 %."
    )
    (two,) = sentences(of(pair("rlhf", "cvar_rlhf", reward_mean=HIGHER)))
    assert two == "CVaR-RLHF of B is ahead of RLHF of A on mean reward."  # nothing else has an interval


def test_rewards_at_unlike_kl_decide_nothing_between_trained_methods() -> None:
    (trained,) = sentences(of(pair("rlhf", like_kl=False, reward_mean=HIGHER)))
    assert trained == "RLHF: A and B are not at like KL, so the rewards do not show which is better."
    (start,) = sentences(of(pair("sft", "rlhf", like_kl=False, reward_mean=HIGHER)))
    assert "is ahead of SFT of A on mean reward" in start


def test_without_intervals_nothing_is_concluded() -> None:
    one = pair("rlhf", reward_mean=HIGHER)
    bare = {metric: {**value, "interval": None} for metric, value in one.differences.items()}
    assert sentences(of(replace(one, differences=bare))) == [
        "RLHF: without intervals over seeds nothing is concluded about A and B."
    ]


def test_what_is_equal_stands_in_one_sentence_and_not_in_the_table() -> None:
    comparison = of(pair("sft"), pair("base"), pair("rlhf", reward_mean=HIGHER))
    assert equal_methods(comparison) == "Equal in A and B, in every seed: SFT and Base."
    assert "\nRLHF\n" in terminal(comparison) and "\nSFT" not in terminal(comparison)
    assert equal_methods(of(pair("rlhf", reward_mean=HIGHER))) == ""


def test_notes_explain_the_marks_that_are_there() -> None:
    assert not any("†" in line for line in notes(of(pair("rlhf"))))
    assert any(line.startswith("† not at like KL") for line in notes(of(pair("rlhf", like_kl=False))))
    assert "paired by seed and test prompt." in notes(of(pair("rlhf")))[1]
    assert "paired by seed. " in notes(of(pair("rlhf"), by_prompts=False, notes=["Last."]))[1]
    assert notes(of(pair("rlhf"), notes=["Last."]))[-1] == "Last."


CHANGED = [("risk.alpha", 0.3, 0.5), ("preset", "tiny", "x" * 60 + "\x1b[2J"), ("ppo.value_clip", None, 0.2)]


def test_params_that_differ_are_listed_without_control_characters() -> None:
    rows = changed_rows(of(changed=CHANGED))
    assert rows[0] == ["risk.alpha", "0.3", "0.5"]
    assert rows[1][2].endswith("x\\x1b[2J")
    assert rows[2] == ["ppo.value_clip", "null", "0.2"]


@pytest.mark.parametrize("name", ["rlhf", "a_method_with_a_name_of_forty_characters"])
def test_the_terminal_has_lines_of_at_most_a_hundred_columns(name: str) -> None:
    far = pair(name, like_kl=False, reward_mean=[-1e3, 2e3, 5e3], kl_sft=HIGHER)
    text = terminal(of(far, changed=CHANGED, notes=["A long note. " * 20]))
    assert max(map(len, text.splitlines())) <= WIDTH
    assert "xxx..." in text


def test_markdown_is_one_table_for_a_pull_request() -> None:
    text = markdown(of(pair("rlhf", reward_mean=HIGHER), changed=CHANGED[:1]))
    assert text.startswith(
        "## exp\\|1 less main\n\n- A: main\n- B: exp\\|1\n- seeds 1, 2, 3; 20 test prompts x 2 samples"
    )
    assert "| method | metric | A | B | B - A | 95% interval |\n| --- | --- | --: | --: | --: | --: |\n" in text
    assert "| RLHF | reward | 2.00 ±2.48 | 4.00 ±2.37 | +2.00 | [1.75, 2.25] * |\n|  | prompt tail |" in text
    assert "| risk.alpha | 0.3 | 0.5 |" in text
    assert "have the same params.yaml." in markdown(of(pair("rlhf")))


def test_of_one_seed_no_interval_is_marked() -> None:
    one = pair("rlhf", reward_mean=HIGHER)
    single = {metric: {**value, "n": 1} for metric, value in one.differences.items()}
    comparison = of(replace(one, differences=single), seeds=[1])
    first, *_ = rows_of(comparison.pairs[0], 0.95)
    assert first.cells[3] == "[1.75, 2.25]" and not first.apart
    assert "*" not in terminal(comparison)
    assert notes(comparison)[1] == "B - A is paired by seed and test prompt."
