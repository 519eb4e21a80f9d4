"""Stage `second_scorer`: a scorer that no training sees, and how well it separates the classes."""

from pathlib import Path

from tasks.running.stage import Run, stage


@stage
def second_scorer(run: Run, raw: Path, code: Path, out: Path, curve: Path, metrics: Path) -> None:
    """Fetch the second scorer, or train one on the rows that are kept for it, and measure it on the test rows.

    DVC reruns this when `code` changes.
    """
    from rarlhf.config.judging import NO_JUDGE
    from rarlhf.data.rows import read_rows
    from rarlhf.rewards.scorers import load_reward_model
    from rarlhf.system.files import write_curve, write_json
    from rarlhf.system.machine import prepare
    from rarlhf.training.reward import make_scorer, score_quality

    machine, params = prepare(run.params.runtime), run.params.judge.second_scorer
    with run.output(out) as folder, run.output(curve) as csv, run.output(metrics) as file:
        if params.source == NO_JUDGE:
            folder.mkdir(parents=True, exist_ok=True)
            write_curve([], csv)
            write_json(file, {})
            return
        points = make_scorer(read_rows(raw / "second_scorer.jsonl"), folder, params, machine, run.recorder)
        quality = score_quality(load_reward_model(folder, params, machine), read_rows(raw / "test.jsonl"), params)
        write_curve(points, csv)
        write_json(file, quality)
    run.log("on the test rows: " + ", ".join(f"{name} {value:,.4g}" for name, value in quality.items()))
    run.tracker.metrics({f"test/{name}": value for name, value in quality.items()})


if __name__ == "__main__":
    second_scorer()
