from rarlhf.config.params import Params
from rarlhf.evaluation.cost import scored_answers


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
