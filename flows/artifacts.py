"""What a run of the flow shows on Prefect's pages: the results table, the figures, a link to the run in MLflow."""

import base64
import json
from pathlib import Path

from prefect.artifacts import create_link_artifact, create_markdown_artifact

from rarlhf.messages.markdown import escaped, table
from tasks.tracking.views import run_page

RESULTS = Path("metrics/evaluate.json")
FIGURES = Path("plots")


def publish_results() -> None:
    """Shows the results table and the figures that stage `evaluate` wrote; the text holds the figures themselves."""
    from rarlhf.evaluation.tables import columns_of, result_rows
    from rarlhf.evaluation.words import counted, percent

    evaluation = json.loads(RESULTS.read_text(encoding="utf-8"))
    columns = columns_of(evaluation)
    heading = ["method", *columns.values()]
    results = table(heading, result_rows(evaluation, list(columns)), [":--", *["--:"] * len(columns)])
    about = f"preset {escaped(evaluation['preset'])}, {counted(len(evaluation['seeds']), 'seed')}"
    note = f"mean ± half-width of the {percent(evaluation['confidence'])} t interval over seeds"
    create_markdown_artifact(f"{results}\n\n{note}\n", key="results", description=about)
    pictures = "\n\n".join(f"## {escaped(path.stem)}\n\n{_embedded(path)}" for path in sorted(FIGURES.glob("*.png")))
    if pictures:
        create_markdown_artifact(pictures, key="figures", description=about)


def publish_mlflow_link(experiment: str, run: str) -> None:
    """Shows a link to a run's page in MLflow."""
    link = run_page(experiment, run)
    create_link_artifact(link, link_text="run in MLflow", key="mlflow-run", description="`make ui` serves the page")


def _embedded(path: Path) -> str:
    return f"![{escaped(path.stem)}](data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()})"
