"""Pictures and tables that stages show in MLflow; no output of a stage depends on them, so dvc.yaml names none."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from tasks.running.stage import MODELS, Run
from tasks.tracking.record import NOTE, run_name, run_tags
from tasks.tracking.results import rounded

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from rarlhf.evaluation.comparisons import Evaluation

SAMPLE_ROWS = 50  # continuations shown of each seed


def track_training(run: Run, method: str, seed: int, curve: Path) -> None:
    """The training curve of one PPO run, as csv and as figure."""
    from rarlhf.config.methods import colours_of
    from rarlhf.evaluation.curves import read_run
    from rarlhf.evaluation.figures import training_curves

    def draw() -> "Figure | None":
        colours = colours_of(run.params.methods.names)
        drawing = training_curves({method: {seed: read_run(curve)}}, colours, run.params.kl.target)
        return None if drawing is None else drawing.figure()

    run.tracker.artifact(curve, "curve")
    run.tracker.figure(draw, "training.png")


def track_samples(run: Run, seed: int, rows: Sequence[Mapping[str, Any]]) -> None:
    """The first continuations of a seed as a table, with their scores."""
    columns = ("prompt", "continuation", "prompt_score", "score")
    table = [{"seed": seed, **{name: row[name] for name in columns}} for row in rows[:SAMPLE_ROWS]]
    run.tracker.table(table, f"samples_seed_{seed}.json")


def track_results(run: Run, evaluation: "Evaluation", texts: Mapping[str, str]) -> None:
    """The metrics of every method as a table, on this run, on a run of each method and on its models; texts by name."""
    from rarlhf.evaluation.tables import tested_on
    from rarlhf.evaluation.words import counted, listed

    rows = [
        {"method": method, "metric": metric, **{key: spread[key] for key in ("mean", "std", "n")}}
        for method, spreads in evaluation["methods"].items()
        for metric, spread in spreads.items()
    ]
    run.tracker.table(rows, "results.json")
    seeds = f"{counted(len(evaluation['seeds']), 'seed')} ({listed(evaluation['seeds'])})"
    about = (
        f"Means over {seeds}, measured by the parent run, stage `evaluate`: {tested_on(evaluation)}. `std/`: standard "
        "deviation over seeds."
    )
    for method, spreads in evaluation["methods"].items():
        means = {metric: spread["mean"] for metric, spread in spreads.items()}
        run.tracker.metrics({f"{method}/{metric}": mean for metric, mean in means.items()})
        spans = {f"std/{metric}": spread["std"] for metric, spread in spreads.items() if spread["std"] is not None}
        tags = {**run_tags(run.params, "results"), "method": method, NOTE: about}
        run.tracker.child(run_name(run.params, method, "results"), tags, rounded(means | spans))
    run.tracker.results(evaluation, Path(MODELS))
    with TemporaryDirectory() as folder:
        for name, text in texts.items():
            path = Path(folder, name)
            path.write_text(text, encoding="utf-8", newline="\n")
            run.tracker.artifact(path)
