"""Stage `reward`: the reward model with its tokenizer, and how well it separates the classes."""

from pathlib import Path

from tasks.running.stage import Run, stage


@stage
def reward(run: Run, raw: Path, code: Path, out: Path, curve: Path, metrics: Path) -> None:
    """Fetch the reward model, or train one on the rows, and measure it on the test rows.

    DVC reruns this when `code` changes.
    """
    from rarlhf.data.rows import read_rows
    from rarlhf.rewards.scorers import load_reward_model
    from rarlhf.system.files import write_curve, write_json
    from rarlhf.system.machine import prepare
    from rarlhf.training.reward import make_scorer, score_quality, world_quality

    machine, params = prepare(run.params.runtime), run.params.reward
    with run.output(out) as folder, run.output(curve) as csv, run.output(metrics) as file:
        points = make_scorer(read_rows(raw / "train.jsonl"), folder, params, machine, run.recorder)
        model, test = load_reward_model(folder, params, machine), read_rows(raw / "test.jsonl")
        quality = score_quality(model, test, params)
        if run.params.data.source == "generator" and "accuracy" in quality:
            quality |= world_quality(model, test)
        write_curve(points, csv)
        write_json(file, quality)
    if quality.get("score_std") == 0:
        run.log("warning: the score of all test rows is the same; PPO cannot learn from it unless this changes")
    run.log("on the test rows: " + ", ".join(f"{name} {value:,.4g}" for name, value in quality.items()))
    run.tracker.metrics({f"test/{name}": value for name, value in quality.items()})


if __name__ == "__main__":
    reward()
