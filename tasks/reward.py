"""Stage `reward`: the reward model with its tokenizer, and how well it tells the classes apart."""

from pathlib import Path

from tasks.stage import Run, stage


@stage
def reward(run: Run, raw: Path, out: Path, curve: Path, metrics: Path) -> None:
    """Fetch the reward model, or train one on the rows, and measure it on the test rows."""
    from rarlhf.classifier import classifier_quality, make_reward_model, world_quality
    from rarlhf.data.files import read_rows, write_curve, write_json
    from rarlhf.reward_model import load_reward_model
    from rarlhf.runtime import prepare

    machine, params = prepare(run.params.runtime), run.params.reward
    with run.output(out) as folder, run.output(curve) as csv, run.output(metrics) as file:
        points = make_reward_model(read_rows(raw / "train.jsonl"), folder, params, machine, run.recorder)
        model, test = load_reward_model(folder, params, machine), read_rows(raw / "test.jsonl")
        quality = classifier_quality(model, test)
        if run.params.data.source == "generator":
            quality |= world_quality(model, test)
        write_curve(points, csv)
        write_json(file, quality)
    run.log("on the test rows: " + ", ".join(f"{name} {value:,.4g}" for name, value in quality.items()))
    run.tracker.metrics({f"test/{name}": value for name, value in quality.items()})


if __name__ == "__main__":
    reward()
