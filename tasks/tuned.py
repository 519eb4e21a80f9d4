"""Stage `tuned`: another training than PPO or a fit, one run per method of `methods.tuned` and seed."""

from pathlib import Path

from tasks.running.stage import Run, stage
from tasks.tracking.record import all_params


@stage
def tuned(  # noqa: PLR0913, PLR0917, the command line of dvc.yaml
    run: Run,
    method: str,
    seed: int,
    settings: Path,
    base: Path,
    sft: Path,
    reward: Path,
    raw: Path,
    prompts: Path,
    out: Path,
    curve: Path,
) -> None:
    """Train a model by SFT on other texts, by Quark or with a penalty, with one seed."""
    from rarlhf.rewards.scorers import load_reward_model
    from rarlhf.risk.planned import read_settings
    from rarlhf.system.files import write_curve
    from rarlhf.system.machine import prepare
    from rarlhf.training.tuned import Places, train_tuned

    run.tracker.params(all_params(run.params))
    chosen = read_settings(run.params.chosen_of(method), settings)
    machine = prepare(run.params.runtime)
    score = load_reward_model(reward, run.params.reward, machine)
    with run.output(out) as folder, run.output(curve) as csv:
        places = Places(base, sft, raw, prompts, folder)
        write_curve(train_tuned(chosen, places, score, run.params, machine, run.recorder, seed), csv)
        run.tracker.artifact(csv, "curve")


if __name__ == "__main__":
    tuned()
