"""What a run of the flow shows on Prefect's pages: the results table, the figures, the way to the run in MLflow."""

import base64
import json
import os
from collections.abc import Sequence
from pathlib import Path

from prefect.artifacts import create_link_artifact, create_markdown_artifact

from tasks.passwords import without_passwords

RESULTS = Path("metrics/evaluate.json")
FIGURES = Path("plots")
MLFLOW = "http://127.0.0.1:5000"  # where `make ui` shows it


def publish_results() -> None:
    """Shows the results table and the figures that stage `evaluate` left; the figures are within the text itself."""
    from rarlhf.evaluation.tables import COLUMNS, result_rows

    evaluation = json.loads(RESULTS.read_text(encoding="utf-8"))
    table = markdown_table(["method", *COLUMNS.values()], result_rows(evaluation, list(COLUMNS)))
    about = f"preset {evaluation['preset']}, {len(evaluation['seeds'])} seeds"
    note = f"mean ± half-width of the {evaluation['confidence']:.0%} t interval over seeds"
    create_markdown_artifact(f"{table}\n\n{note}\n", key="results", description=about)
    pictures = "\n\n".join(f"## {path.stem}\n\n{_embedded(path)}" for path in sorted(FIGURES.glob("*.png")))
    if pictures:
        create_markdown_artifact(pictures, key="figures", description=about)


def publish_mlflow_link(experiment: str, run: str) -> None:
    """Shows the way to a run's page in MLflow."""
    server = without_passwords(os.environ.get("MLFLOW_TRACKING_URI", "")).rstrip("/")
    link = f"{server if server.startswith('http') else MLFLOW}/#/experiments/{experiment}/runs/{run}"
    create_link_artifact(link, link_text="run in MLflow", key="mlflow-run", description="`make ui` serves the page")


def markdown_table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells under a heading; the first column to the left, the others to the right."""
    rule = [":--", *["--:"] * (len(heading) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (heading, rule, *rows))


def _embedded(path: Path) -> str:
    return f"![{path.stem}](data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()})"
