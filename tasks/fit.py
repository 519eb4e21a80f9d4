"""Stage `fit`: weighted likelihood of planned answers, one run per method of `methods.fit` and seed."""

from pathlib import Path

from tasks.running.stage import Run, stage
from tasks.tracking.record import all_params


@stage
def fit(
    run: Run, method: str, seed: int, plan: Path, samples: Path, sft: Path, reward: Path, out: Path, curve: Path
) -> None:
    """Fit the SFT model to its own answers, weighted as the method's plan says, with one seed."""
    from rarlhf.decoding.samples import read_samples
    from rarlhf.rewards.scorers import load_reward_model
    from rarlhf.risk.planned import read_plan
    from rarlhf.system.files import write_curve
    from rarlhf.system.machine import prepare
    from rarlhf.training.fit import Places, fit_policy
    from rarlhf.training.supervised import Seat

    params = run.params.model_copy(update={"risk": run.params.risk_of(method)})
    run.tracker.params(all_params(params))  # as this method takes them
    answers, planned = read_samples(samples), read_plan(plan)
    seat = Seat(prepare(params.runtime), run.recorder, seed)
    score = load_reward_model(reward, params.reward, seat.machine)
    with run.output(out) as folder, run.output(curve) as csv:
        write_curve(fit_policy(answers, planned, Places(sft, folder), score, params, seat), csv)
        run.tracker.artifact(csv, "curve")


if __name__ == "__main__":
    fit()
