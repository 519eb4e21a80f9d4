"""How many answers each method's training has the scorer score: its cost, whatever the machine."""

from rarlhf.config.counts import warmup_rollouts
from rarlhf.config.methods import methods_of
from rarlhf.config.params import Params


def scored_answers(params: Params) -> dict[str, int]:
    """Answers that one training of each trained method needs scored.

    A PPO training scores a batch per iteration, those that warm up the critic included. A fit scores its plan's
    answers, and those of each further round. A PPO method with `risk.eta: plan` needs the plan's answers too, which
    are drawn once for all methods and seeds.

    Returns: method -> number of answers.
    """
    plan = params.plan.train.prompts * params.plan.train.samples
    ppo = (params.ppo.iterations + warmup_rollouts(params.ppo)) * params.ppo.batch_size
    fit = plan + (params.fit.rounds - 1) * params.plan.train.prompts * params.fit.samples
    scored = {}
    for method in methods_of(params):
        if method.made_by == "fit":
            scored[method.name] = fit
        elif method.risk is not None:
            planned = method.risk.eta == "plan" and method.risk.measure in ("cvar_ru", "mean_cvar")
            scored[method.name] = ppo + (plan if planned else 0)
    return scored
