"""Stage `evaluate`: metrics with their intervals, figures, and the report."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from rarlhf.config.methods import methods_of
from rarlhf.config.params import Params
from tasks.running.stage import Run, stage

if TYPE_CHECKING:
    from rarlhf.evaluation.evaluate import Evaluation
    from rarlhf.evaluation.report import Picture
    from rarlhf.evaluation.rows import Tables

PERPLEXITY_BATCH = 16  # texts per forward pass: memory and speed only


@stage
def evaluate(  # noqa: PLR0913, PLR0917
    run: Run,
    generations: Path,
    prompts: Path,
    models: Path,
    curves: Path,
    metrics: Path,
    summary: Path,
    plots: Path,
    report: Path,
    cards: Path,
) -> None:
    """Measure the generations, compare the methods, and write the numbers, the figures and the report."""
    from rarlhf.evaluation.curves import cvar_curves, quantile_curves, read_training, write_plot_data
    from rarlhf.evaluation.evaluate import evaluate as evaluate_tables
    from rarlhf.evaluation.evaluate import summary as summary_of
    from rarlhf.evaluation.report import draw_pictures
    from rarlhf.evaluation.rows import read_tables
    from rarlhf.evaluation.tables import terminal_table
    from rarlhf.system.files import write_json

    params = run.params
    tables = read_tables(generations, params.methods.names, params.seeds)
    training = read_training(curves, params.methods.names, params.seeds)
    evaluation = evaluate_tables(tables, _perplexities(run, models, prompts), params)
    pictures = draw_pictures(tables, training, evaluation, params)
    with run.output(metrics) as path:
        write_json(path, evaluation)
    with run.output(summary) as path:
        write_json(path, summary_of(evaluation))
    with run.output(plots) as folder:
        write_plot_data(folder, quantile_curves(tables), cvar_curves(tables), training)
        for picture in pictures:
            (folder / f"{picture.name}.png").write_bytes(picture.png)
        run.tracker.artifact(folder)
    html = _report(run, prompts, tables, evaluation, pictures)
    with run.output(report) as path:
        path.write_text(html, encoding="utf-8")
    with run.output(cards) as folder:
        _write_cards(folder, evaluation, params)
    _track(run, evaluation, html)
    run.log(terminal_table(evaluation))


def _perplexities(run: Run, models: Path, prompts: Path) -> dict[str, dict[int, float]]:
    """Perplexity of the reference texts under the model of every method and seed; one model is measured once."""
    from rarlhf.evaluation.perplexity import reference_perplexity
    from rarlhf.models.backbone import ModelFolders
    from rarlhf.models.loading import load_tokenizer
    from rarlhf.system.files import read_jsonl
    from rarlhf.system.machine import prepare

    machine = prepare(run.params.runtime)
    texts = [row["text"] for row in read_jsonl(prompts / "perplexity.jsonl")]

    folders = ModelFolders(run.params.model, machine.device)

    def measure(folder: Path) -> float:
        tokenizer, start = load_tokenizer(str(folder)), run.params.evaluate.add_start_token
        with machine.autocast(), folders.open(folder)() as model:
            value = reference_perplexity(model, tokenizer, texts, PERPLEXITY_BATCH, start)
        run.log(f"perplexity of {len(texts):,} reference texts under {folder}: {value:.2f}")
        return value

    perplexities: dict[str, dict[int, float]] = {}
    seeds = run.params.seeds
    for method in methods_of(run.params):
        if method.per_seed:
            perplexities[method.name] = {seed: measure(method.folder(models, seed)) for seed in seeds}
        else:
            perplexities[method.name] = dict.fromkeys(seeds, measure(method.folder(models, seeds[0])))
    return perplexities


def _report(run: Run, prompts: Path, tables: "Tables", evaluation: "Evaluation", pictures: "list[Picture]") -> str:
    from rarlhf.evaluation.evaluate import tail_of
    from rarlhf.evaluation.report import render_report, tail_samples

    params = run.params
    samples = tail_samples(tables, tail_of(tables, params), params.evaluate.table_rows, params.evaluate.seed)
    counts = json.loads((prompts / "counts.json").read_text(encoding="utf-8"))
    provenance = {"inputs (SHA-256)": run.inputs_hash} | {
        f"{path} (SHA-256)": digest for path, digest in run.inputs.files.items() if path.startswith("data/")
    }
    real_text = params.data.source != "generator"
    return render_report(evaluation, pictures, samples, counts, params, provenance, offensive=real_text)


def _write_cards(folder: Path, evaluation: "Evaluation", params: Params) -> None:
    """A card with results for every trained method."""
    from rarlhf.evaluation.card import base_of_params
    from rarlhf.evaluation.cards import card_with_results

    base = base_of_params(params.model, params.data)
    for method in methods_of(params):
        if method.name != "base":
            text = card_with_results(method, base, evaluation, params).text()
            (folder / f"{method.name}.md").write_text(text, encoding="utf-8", newline="\n")


def _track(run: Run, evaluation: "Evaluation", html: str) -> None:
    """The results as metrics and table of the run and as a run of each method, the report as a page."""
    rows = [
        {"method": method, "metric": metric, **{key: spread[key] for key in ("mean", "std", "n")}}
        for method, spreads in evaluation["methods"].items()
        for metric, spread in spreads.items()
    ]
    run.tracker.table(rows, "results.json")
    for method, spreads in evaluation["methods"].items():
        means = {metric: spread["mean"] for metric, spread in spreads.items()}
        run.tracker.metrics({f"{method}/{metric}": mean for metric, mean in means.items()})
        spans = {f"std/{metric}": spread["std"] for metric, spread in spreads.items() if spread["std"] is not None}
        run.tracker.child(f"{method} (test results)", {"stage": "results", "method": method}, means | spans)
    with TemporaryDirectory() as folder:
        page = Path(folder, "report.html")
        page.write_text(html, encoding="utf-8")
        run.tracker.artifact(page)


if __name__ == "__main__":
    evaluate()
