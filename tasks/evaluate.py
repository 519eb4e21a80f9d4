"""Stage `evaluate`: metrics with their intervals, figures, the report and model cards."""

from pathlib import Path

from tasks.running.code import FOLDER as CODE
from tasks.running.figures import track_results
from tasks.running.stage import Run, stage


@stage
def evaluate(
    run: Run,
    generations: Path,
    prompts: Path,
    models: Path,
    curves: Path,
    samples: Path,
    metrics: Path,
    summary: Path,
    plots: Path,
    report: Path,
    cards: Path,
) -> None:
    """Measure the generations, compare the methods, and write the numbers, the figures, the report and the cards."""
    from rarlhf.evaluation.cards import write_cards
    from rarlhf.evaluation.comparisons import summary_of
    from rarlhf.evaluation.results import Folders, measure_run
    from rarlhf.evaluation.tables import terminal_table
    from rarlhf.system.files import write_json

    folders = Folders(generations, prompts, models, curves, samples)
    results = measure_run(folders, run.params, run.recorder)
    files = run.inputs.files
    data = [path for path in files if path.startswith("data/") and not Path(path).is_relative_to(CODE)]
    hashes = {"inputs": run.inputs_hash, **{path: files[path] for path in data}}
    page = results.report(prompts, {f"{name} (SHA-256)": digest for name, digest in hashes.items()})
    with run.output(metrics) as path:
        write_json(path, results.evaluation)
    with run.output(summary) as folder:
        for method, numbers in summary_of(results.evaluation).items():
            write_json(folder / f"{method}.json", numbers)
    with run.output(plots) as folder:
        results.write_plots(folder)
        run.tracker.artifact(folder)
    with run.output(report) as path:
        path.write_text(page, encoding="utf-8")
    with run.output(cards) as folder:
        write_cards(folder, results.evaluation, run.params)
    track_results(run, results.evaluation, page)
    run.log(terminal_table(results.evaluation, run.params.evaluate))


if __name__ == "__main__":
    evaluate()
