"""Stage `reward`: the reward model with its tokenizer, and how well it tells the classes apart."""

from pathlib import Path

from tasks.stage import Run, stage


@stage
def reward(run: Run, raw: Path, out: Path, curve: Path, metrics: Path) -> None:
    """Fetch the reward model, or train one on the rows, and measure it on the test rows."""
    from rarlhf.classifier import classifier_quality, make_reward_model
    from rarlhf.data.files import read_rows, write_json
    from rarlhf.reward_model import load_reward_model
    from rarlhf.runtime import prepare
    from rarlhf.supervised import write_curve

    machine, params = prepare(run.params.runtime), run.params.reward
    with run.output(out) as folder, run.output(curve) as csv, run.output(metrics) as file:
        points = make_reward_model(read_rows(raw / "train.jsonl"), folder, params, machine, run.recorder)
        quality = classifier_quality(load_reward_model(folder, params, machine), read_rows(raw / "test.jsonl"))
        write_curve(points, csv)
        write_json(file, quality)
    run.log(f"on {quality['rows']:,} test rows: accuracy {quality['accuracy']:.3f}, AUC {quality['auc']:.3f}")
    run.tracker.metrics({f"test/{name}": value for name, value in quality.items()})


if __name__ == "__main__":
    reward()
