from dataclasses import replace

import numpy as np
import pytest

from rarlhf.data.frontier import exact_frontier, world_outcomes
from rarlhf.data.world import KINDS, generate_rows
from rarlhf.evaluation.generations import Generations
from rarlhf.evaluation.oracle import Reached, exact_shares, latent_of, measure_by_oracle, oracle_values, outcomes_of

PROMPTS = {kind: f"we {kind} the long film and quiet cast" for kind in KINDS}
FAIR, RAVE, HARSH = " . the plot was fine", " . a superb song", " . we found the end dull"


def table_of(texts: dict[str, list[str]], kl: float = 0.5) -> Generations:
    """One prompt of each kind named, with these continuations."""
    shape = (len(texts), len(next(iter(texts.values()))))
    return Generations(
        prompt_ids=np.arange(len(texts)),
        prompts=tuple(PROMPTS[kind] for kind in texts),
        prompt_scores=np.arange(len(texts), dtype=np.float64),
        continuations=tuple(map(tuple, texts.values())),
        scores=np.zeros(shape),
        kl=np.full(shape, kl),
        tokens=np.ones(shape, dtype=np.int64),
    )


TABLE = table_of({"regret": [FAIR, RAVE, " . the plot was"], "liked": [HARSH, RAVE, RAVE + " ,"]})
LATENT = [[0.0, -2.0, np.nan], [-0.9, 2.7, np.nan]]  # base and clause: -1 + 1, -1 - 1; .3 - 1.2, .3 + 2.4
TAIL = np.array([True, False])


def test_latent_sentiment_of_prompt_and_continuation_and_none_of_a_text_broken_off() -> None:
    np.testing.assert_allclose(latent_of(TABLE), LATENT, atol=1e-12)


def test_measures_by_hand_leave_out_what_is_no_review() -> None:
    values = oracle_values(TABLE, TAIL)
    assert values == pytest.approx(
        {
            "oracle_no_review": 2 / 6,
            "oracle_mean": (0.0 - 2.0 - 0.9 + 2.7) / 4,
            "oracle_cvar_10": -2.0,
            "oracle_prompt_tail": -1.0,
        }
    )


def test_texts_of_another_world_are_counted_and_have_no_other_measure() -> None:
    other = table_of({"saw": ["what?", ""], "liked": [" .. .", " , and then"]})
    other = replace(other, prompts=("prompt 1", "prompt 2"))
    spreads = measure_by_oracle({"sft": {1: other}, "rlhf": {1: other}}, TAIL)
    assert {method: set(metrics) for method, metrics in spreads.items()} == {
        "sft": {"oracle_no_review"},
        "rlhf": {"oracle_no_review"},
    }
    assert spreads["rlhf"]["oracle_no_review"]["per_seed"] == [1.0]


def test_a_metric_that_one_seed_lacks_is_left_out() -> None:
    nothing = replace(TABLE, continuations=(("?",) * 3, ("?",) * 3))
    spreads = measure_by_oracle({"sft": {1: TABLE, 2: TABLE}, "rlhf": {1: TABLE, 2: nothing}}, TAIL)
    assert spreads["sft"]["oracle_mean"]["n"] == 2
    assert set(spreads["rlhf"]) == {"oracle_no_review"}


def test_the_world_has_the_kinds_of_these_prompts() -> None:
    outcomes = outcomes_of((PROMPTS["liked"], PROMPTS["regret"], PROMPTS["liked"], PROMPTS["liked"]))
    assert outcomes is not None
    assert dict(zip(KINDS, outcomes.shares.tolist(), strict=True)) == {"liked": 0.75, "saw": 0.0, "regret": 0.25}


@pytest.mark.parametrize("prompt", [PROMPTS["saw"] + FAIR, "we saw the long film and", "prompt 1"])
def test_no_exact_world_for_other_prompts(prompt: str) -> None:
    assert outcomes_of((PROMPTS["saw"], prompt)) is None


def test_the_exact_optimum_has_share_1_and_sft_share_0() -> None:
    outcomes = world_outcomes(wanted_only=True)
    row = exact_frontier(outcomes, [0.75], 0.1)[0]
    start = {"oracle_mean": 0.4, "oracle_cvar_10": -3.0}
    best = {"oracle_mean": row.best_mean.mean, "oracle_cvar_10": row.best_cvar.cvar}
    shares = exact_shares(start, Reached(0.75, best), outcomes)
    assert shares == pytest.approx({"exact_share_mean": 1.0, "exact_share_cvar_10": 1.0})
    assert exact_shares(start, Reached(0.75, start), outcomes) == {"exact_share_mean": 0.0, "exact_share_cvar_10": 0.0}
    half = {name: (start[name] + best[name]) / 2 for name in start}
    assert exact_shares(start, Reached(0.75, half), outcomes)["exact_share_mean"] == pytest.approx(0.5)


def test_no_share_where_the_frontier_is_not_above_sft_or_nothing_was_spent() -> None:
    outcomes = world_outcomes(wanted_only=True)
    values = {"oracle_mean": 9.0, "oracle_cvar_10": 9.0}
    assert exact_shares(values, Reached(0.5, values), outcomes) == {}
    assert exact_shares({"oracle_mean": 0.0}, Reached(0.0, values), outcomes) == {}


def test_shares_belong_to_trained_methods_and_use_their_own_kl_and_seed() -> None:
    sft = {seed: table_of({"regret": [FAIR, RAVE], "liked": [HARSH, RAVE]}, kl=0.0) for seed in (1, 2)}
    better = {seed: table_of({"regret": [FAIR, FAIR], "liked": [HARSH, RAVE]}, kl=0.2 * seed) for seed in (1, 2)}
    spreads = measure_by_oracle({"base": sft, "sft": sft, "rlhf": better}, TAIL)
    assert not any("exact_share_mean" in spreads[start] for start in ("base", "sft"))
    first, second = spreads["rlhf"]["exact_share_mean"]["per_seed"]
    assert first > second > 0  # the same rise for twice the KL


def test_reviews_of_the_generator_are_reviews() -> None:
    rows = [row for row in generate_rows(40, 5) if row.text.startswith("we saw")]
    words = [row.text.split(" ") for row in rows]
    table = table_of({"saw": [" " + " ".join(text[8:]) for text in words]})
    assert oracle_values(table, np.array([True]))["oracle_no_review"] == 0.0
