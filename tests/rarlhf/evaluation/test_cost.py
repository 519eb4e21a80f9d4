from rarlhf.config.methods import methods_of
from rarlhf.config.params import Params
from rarlhf.evaluation.cost import _reads, scored_answers


def changed(params: Params, section: str, **values: object) -> Params:
    return params.model_copy(update={section: getattr(params, section).model_copy(update=values)})


def test_answers_that_a_training_has_scored(params: Params) -> None:
    few = changed(params, "ppo", iterations=10, value_warmup=2, batch_size=8, baseline="critic")
    few = changed(few, "plan", train=params.plan.train.model_copy(update={"prompts": 100, "samples": 4}))
    few = changed(few, "fit", rounds=3, samples=2)
    trained = {
        "ppo": {
            "rlhf": {"measure": "none"},
            "ra_rlhf": {},
            "cvar_rlhf": {"measure": "cvar_ru", "of": "score", "eta": "plan"},
            "own": {"measure": "cvar_ru", "of": "score", "eta": 1.0},
        },
        "fit": {"mean_fit": {"measure": "none"}},
    }
    few = changed(few, "methods", **trained)
    assert scored_answers(few) == {
        "rlhf": 96,  # (10 + 2) x 8
        "ra_rlhf": 96,
        "cvar_rlhf": 496,  # 96 + the plan's 100 x 4
        "own": 96,
        "mean_fit": 800,  # 400, then twice 100 x 2
    }
    assert scored_answers(changed(few, "ppo", baseline="query"))["rlhf"] == 80  # no critic to warm up


def test_a_rule_with_a_head_reads_the_sft_model_and_the_head_and_needs_the_answers_it_learns_from(
    params: Params,
) -> None:
    entry = {"rule": "nado", "head": "worth"}
    headed = {"on_sft": {**entry, "of": "sft"}, "on_rlhf": {**entry, "of": "rlhf"}}
    few = changed(params, "ppo", iterations=10, value_warmup=2, batch_size=8, baseline="critic")
    few = changed(few, "plan", train=params.plan.train.model_copy(update={"prompts": 100, "samples": 4}))
    few = changed(few, "methods", ppo={"rlhf": {"measure": "none"}}, fit={}, headed=headed, heads={"worth": {}})
    assert scored_answers(few) == {"rlhf": 96, "on_sft": 400, "on_rlhf": 496}
    reads = {method.name: _reads(method) for method in methods_of(few) if method.name in headed}
    assert reads == {"on_sft": (3, 2), "on_rlhf": (3, 3)}  # the model, the SFT model by a pass of its own, the head


def test_regularised_fine_tuning_scores_the_answers_of_rounds_that_learn(params: Params) -> None:
    own = {"by": "regularised", "rounds": 3, "prompts": 10, "samples": 2}
    soft = {"labels": "soft", "eta": 1.0, "kl_coef": 1.0}
    tuned = {
        "sequential": own,
        "parallel": {**own, "lag": 1},
        "one": {**own, "lag": 1, "rounds": 1},
        "plain": {**own, "penalty": 0},
        "known": {**own, "head": soft},
        "planned": {**own, "head": {**soft, "eta": "plan"}},
    }
    few = changed(params, "plan", train=params.plan.train.model_copy(update={"prompts": 100, "samples": 4}))
    few = changed(few, "methods", start=[], ppo={}, fit={}, tuned=tuned)
    assert scored_answers(few) == {
        "sequential": 60,
        "parallel": 40,  # the head of the last round would be used in the next one
        "one": 20,
        "plain": 0,
        "known": 60,
        "planned": 460,
    }
