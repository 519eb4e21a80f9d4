"""The benchmark of the paper's shapes, on its small size."""

import pytest

from benchmarks.gptj import CASES, GPT2, GPTJ, measure

pytestmark = pytest.mark.usefixtures("restored")


@pytest.mark.parametrize("name", CASES)
def test_a_case_trains_and_is_measured(name: str) -> None:
    row = measure(name, small=True, micro_batch=0, iterations=1, decode="eager")
    assert row["sizes"]["micro_batch"] == 8  # as many as fit: on a CPU all
    assert row["seconds_per_iteration"] > 0
    assert {"time/decode", "time/policy", "time/reference", "time/update"} <= set(row["seconds_of_phases"])
    assert 0 < sum(row["seconds_of_phases"].values()) <= row["seconds_per_iteration"]
    assert 0.1 < row["peak_gib"] < 100
    # an adapter is trained with the value head (64 + 1); its two adapters are beside the 2-layer backbone
    assert (row["trained"] == row["parameters"]) == (name == "gpt2")
    if name != "gpt2":
        assert row["trained"] == 2 * 2 * 2 * 16 * 64 + 65  # layers, q_proj and v_proj, A and B, r = 16


def test_the_shapes_are_those_of_the_models() -> None:
    width, layers = GPTJ["n_embd"], GPTJ["n_layer"]
    assert 12 * width**2 * layers + 2 * GPTJ["vocab_size"] * width == pytest.approx(6.05e9, rel=0.01)
    width, layers = GPT2["n_embd"], GPT2["n_layer"]
    assert 12 * width**2 * layers + (GPT2["vocab_size"] + 1024) * width == pytest.approx(124e6, rel=0.01)
