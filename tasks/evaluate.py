"""Stage `evaluate`: metrics with their intervals, figures, the report and model cards."""

from pathlib import Path

from tasks.inputs import params_hash
from tasks.running.code import FOLDER as CODE
from tasks.running.figures import track_results
from tasks.running.stage import Run, stage
from tasks.tracking.store import EXPERIMENT


@stage
def evaluate(
    run: Run,
    generations: Path,
    prompts: Path,
    models: Path,
    curves: Path,
    samples: Path,
    judgements: Path,
    second_scorer: Path,
    utility: Path,
    metrics: Path,
    summary: Path,
    plots: Path,
    report: Path,
    table: Path,
    latex: Path,
    cards: Path,
) -> None:
    """Measure the generations, compare the methods, and write numbers, figures, the report, tables and the cards."""
    from rarlhf.evaluation.cards import write_cards
    from rarlhf.evaluation.comparisons import summary_of
    from rarlhf.evaluation.exports import latex_table, markdown_table
    from rarlhf.evaluation.report import Origin
    from rarlhf.evaluation.results import Folders, measure_run
    from rarlhf.evaluation.tables import terminal_table
    from rarlhf.system.files import write_json

    folders = Folders(generations, prompts, models, curves, samples, judgements, second_scorer, utility)
    results = measure_run(folders, run.params, run.recorder)
    files = run.inputs.files
    data = [path for path in files if path.startswith("data/") and not Path(path).is_relative_to(CODE)]
    hashes = {"inputs": run.inputs_hash, "params": params_hash(run.params), **{path: files[path] for path in data}}
    origin = Origin(EXPERIMENT, run.inputs_hash, {f"{name} (SHA-256)": digest for name, digest in hashes.items()})
    texts = {
        report: results.report(prompts, origin),
        table: markdown_table(results.evaluation, run.params.evaluate),
        latex: latex_table(results.evaluation, run.params.evaluate),
    }
    with run.output(metrics) as path:
        write_json(path, results.evaluation)
    with run.output(summary) as folder:
        for method, numbers in summary_of(results.evaluation).items():
            write_json(folder / f"{method}.json", numbers)
    with run.output(plots) as folder:
        results.write_plots(folder)
        run.tracker.artifact(folder)
    for place, text in texts.items():
        with run.output(place) as path:
            path.write_text(text, encoding="utf-8", newline="\n")
    with run.output(cards) as folder:
        write_cards(folder, results.evaluation, run.params)
    track_results(run, results.evaluation, {place.name: text for place, text in texts.items()})
    run.log(terminal_table(results.evaluation, run.params.evaluate))


if __name__ == "__main__":
    evaluate()
