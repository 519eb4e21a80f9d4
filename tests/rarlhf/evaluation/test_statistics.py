import numpy as np
import pytest

from rarlhf.config.params import Params
from rarlhf.evaluation.statistics import (
    bootstrap,
    distinguishable,
    like_kl,
    over_seeds,
    paired_difference,
    seeds_at_unlike_kl,
    t_half_width,
)


def test_spread_by_hand() -> None:
    spread = over_seeds([1.0, 2.0, 3.0])
    # std 1; half = 4.3027 (t, 2 degrees, 97.5 %) / sqrt(3) = 2.4841
    assert (spread["mean"], spread["std"], spread["n"]) == (2.0, 1.0, 3)
    assert spread["ci95"] == pytest.approx([-0.4841, 4.4841], abs=1e-4)
    assert spread["per_seed"] == [1.0, 2.0, 3.0]


def test_one_seed_has_no_spread() -> None:
    spread = over_seeds([1.5])
    assert (spread["mean"], spread["std"], spread["ci95"], spread["n"]) == (1.5, None, None, 1)
    assert t_half_width([1.5], 0.95) is None


def test_equal_values_have_exactly_no_spread() -> None:
    spread = over_seeds([39.6] * 3)
    assert (spread["mean"], spread["std"], spread["ci95"]) == (39.6, 0.0, [39.6, 39.6])


def test_half_width_grows_with_confidence() -> None:
    assert t_half_width([1.0, 2.0, 3.0], 0.9) == pytest.approx(2.9200 / 3**0.5, abs=1e-4)  # t, 2 degrees, 95 %


def test_paired_difference_by_hand() -> None:
    difference = paired_difference([2.0, 4.0, 6.0], [1.0, 2.0, 3.0], prompt_error=0.5, confidence=0.95)
    # differences 1 2 3: seed half 2.4841; prompt half 1.95996 x 0.5 = 0.97998; together sqrt(6.1708 + 0.9604) = 2.6704
    assert difference["mean"] == 2.0
    assert difference["seed_error"] == pytest.approx(3**-0.5)
    assert difference["interval"] == pytest.approx([-0.6704, 4.6704], abs=1e-4)
    # at 90 %: 2.9200 / sqrt(3) = 1.6859 and 1.6449 x .5 = .8224; together 1.8758
    narrower = paired_difference([2.0, 4.0, 6.0], [1.0, 2.0, 3.0], prompt_error=0.5, confidence=0.9)
    assert narrower["interval"] == pytest.approx([0.1242, 3.8758], abs=1e-4)


def test_pairing_removes_what_seeds_share() -> None:
    first, second = [1.0, 5.0, 9.0], [0.0, 4.1, 7.9]
    paired = paired_difference(first, second, 0.0, 0.95)
    shuffled = paired_difference(first, [7.9, 0.0, 4.1], 0.0, 0.95)
    assert paired["mean"] == pytest.approx(shuffled["mean"])
    assert distinguishable(paired["interval"])
    assert not distinguishable(shuffled["interval"])


def test_no_interval_without_a_known_error() -> None:
    assert paired_difference([1.0], [0.5], None, 0.95)["interval"] is None
    assert paired_difference([1.0], [0.5], 0.0, 0.95)["interval"] is None
    assert paired_difference([1.0], [0.5], 0.1, 0.95)["interval"] == pytest.approx([0.304, 0.696], abs=1e-3)
    assert paired_difference([44.0, 44.0], [39.6, 39.6], 0.0, 0.95)["interval"] is None
    assert paired_difference([44.0, 44.0], [39.6, 39.6], 0.1, 0.95)["interval"] is not None
    rounding = paired_difference([2.1, 2.1], [2.0, 2.0], 5e-17, 0.95)  # of a bootstrap of equal numbers
    assert rounding["interval"] is None


def test_paired_difference_refuses_unlike_seeds() -> None:
    with pytest.raises(ValueError, match="got 2 and 1"):
        paired_difference([1.0, 2.0], [1.0], 0.0, 0.95)


def test_bootstrap_error_is_that_of_a_mean() -> None:
    values = np.random.default_rng(4).normal(size=(2, 50, 3))
    draws = bootstrap({"a": values}, lambda x: float(x.mean()), seed=1, draws=500)["a"]
    assert draws.shape == (500,)
    # error of a mean over prompts, of the prompts' means over seeds and samples
    expected = values.mean(axis=(0, 2)).std() / 50**0.5
    assert draws.std(ddof=1) == pytest.approx(expected, rel=0.15)  # five times the 3 % of 500 draws


def test_bootstrap_draws_prompts_together() -> None:
    shared = np.random.default_rng(5).normal(size=(1, 40, 1))
    values = {"a": shared + 1.0, "b": shared, "other": shared[:, ::-1]}
    draws = bootstrap(values, lambda x: float(x.mean()), seed=1, draws=500)
    assert draws["a"] - draws["b"] == pytest.approx(1.0)  # what both share cancels
    assert (draws["other"] - draws["b"]).std() > 0.05  # control: without shared prompts it does not


def test_bootstrap_takes_the_mean_over_all_seeds() -> None:
    one = np.random.default_rng(8).normal(size=(1, 9, 2))
    draws = bootstrap({"a": np.concatenate([one, -one])}, lambda x: float(x.mean()), seed=1, draws=500)["a"]
    assert draws == pytest.approx(0.0, abs=1e-12)


def test_bootstrap_is_seeded() -> None:
    values = {"a": np.random.default_rng(6).normal(size=(1, 9, 2))}
    first, same, other = (bootstrap(values, lambda x: float(x.mean()), seed, 500)["a"] for seed in (1, 1, 2))
    assert np.array_equal(first, same)
    assert not np.array_equal(first, other)


def test_interval_covers_the_truth_only_with_the_prompts_error() -> None:
    """Effects differ by prompt (sd 1) much more than by seed (sd 0.02); the true mean effect is 0."""
    random = np.random.default_rng(7)
    covered = {"both": 0, "seeds alone": 0}
    for _ in range(300):
        effects = random.normal(size=40)
        per_seed = effects.mean() + random.normal(scale=0.02, size=3)
        for name, error in (("both", effects.std() / 40**0.5), ("seeds alone", 0.0)):
            interval = paired_difference(per_seed.tolist(), [0.0] * 3, error, 0.95)["interval"]
            assert interval is not None
            covered[name] += interval[0] <= 0 <= interval[1]
    assert covered["both"] / 300 > 0.90
    assert covered["seeds alone"] / 300 < 0.50


@pytest.mark.parametrize(
    ("interval", "expected"),
    [([0.1, 0.2], True), ([-2.0, -1.0], True), ([-0.1, 0.2], False), ([0.0, 1.0], False), ([-1.0, 0.0], False)],
)
def test_distinguishable(interval: list[float], expected: bool) -> None:
    assert distinguishable(interval) is expected
    assert distinguishable(None) is False


@pytest.mark.parametrize(
    ("first", "second", "prompt_error", "alike"),
    [
        ([2.9, 2.5, 1.1], [1.9, 2.2, 2.2], 0.0, False),  # +1.0, +0.3, -1.1: the mean, +0.07, hides it
        ([2.1, 1.9, 2.2], [2.0, 2.05, 2.0], 9.0, True),  # +0.1, -0.15, +0.2: at most 0.2 in every seed
        ([2.1, 2.1, 2.25], [2.0, 2.0, 2.0], 0.0, False),  # 0.15 +- 4.3027 x 0.05 = [-0.07, 0.37]
        ([2.02] * 7 + [2.25], [2.0] * 8, 0.0, True),  # 0.04875 +- 2.3646 x 0.02875 = [-0.02, 0.12]
        ([2.02] * 7 + [2.25], [2.0] * 8, 0.2, False),  # the prompts' error too: +- sqrt(0.068^2 + 0.392^2) = 0.40
        ([2.3, 2.3], [2.0, 2.0], 0.0, False),  # nothing varies, so that there is no interval
        ([2.15], [2.0], 0.0, True),
        ([2.25], [2.0], 0.0, False),
    ],
)
def test_like_kl_by_hand(
    first: list[float], second: list[float], prompt_error: float, alike: bool, params: Params
) -> None:
    """At a target of 2 the limit is 0.2 nats, in every seed or for the whole interval."""
    for confidence in (0.95, 0.5):  # at 50 % the third case's interval would be [0.11, 0.19]
        assert like_kl(paired_difference(first, second, prompt_error, confidence), 2.0, params.evaluate) is alike
        assert like_kl(paired_difference(second, first, prompt_error, confidence), 2.0, params.evaluate) is alike


def test_like_kl_depends_on_the_target(params: Params) -> None:
    difference = paired_difference([2.3, 1.6], [2.0, 2.0], 0.0, 0.95)
    assert not like_kl(difference, 2.0, params.evaluate)
    assert like_kl(difference, 4.0, params.evaluate)


def test_like_kl_depends_on_the_share_and_the_confidence(params: Params) -> None:
    far = paired_difference([2.3, 2.3], [2.0, 2.0], 0.0, 0.95)  # 0.3 of a target of 2 is a share of 0.15
    shares = [params.evaluate.model_copy(update={"like_kl": share}) for share in (0.14, 0.15)]
    assert [like_kl(far, 2.0, share) for share in shares] == [False, True]
    assert [seeds_at_unlike_kl(far, 2.0, share) for share in shares] == [2, 0]
    one_apart = paired_difference([2.1, 2.1, 2.25], [2.0, 2.0, 2.0], 0.0, 0.95)
    # 0.15 +- t x 0.05: t is 4.3027 at 95 %, and 0.8165 at 50 %, which gives [0.11, 0.19]
    levels = [params.evaluate.model_copy(update={"like_kl_confidence": level}) for level in (0.95, 0.5)]
    assert [like_kl(one_apart, 2.0, level) for level in levels] == [False, True]


def test_bootstrap_leaves_the_factor_of_a_few_prompts_as_it_is() -> None:
    """Of two prompts, at 0 and 1: means 0, 1/2 and 1 with odds 1 : 2 : 1, of standard deviation sqrt(1/8) = 0.354.

    The usual standard error of that mean, with P - 1, is sqrt(1/2) / sqrt(2) = 0.5 = 0.354 / sqrt(1/2).
    """
    draws = bootstrap({"a": np.array([[[0.0], [1.0]]])}, lambda x: float(x.mean()), seed=1, draws=20_000)["a"]
    assert draws.shape == (20_000,)
    assert draws.std() == pytest.approx(0.125**0.5, rel=0.02)
