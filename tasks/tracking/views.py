"""What MLflow's pages show first: a view of the list of runs, and the links that open it."""

import json
import os
import time
from urllib.parse import urlencode

from tasks.tracking.passwords import without_passwords

PAGES = "http://127.0.0.1:5000"  # where `make ui` shows them
VIEW = "results"  # key of the view, in the link
TAG = f"mlflow.sharedViewState.{VIEW}"  # MLflow keeps the saved views of an experiment in tags of this form
# Columns from left to right, each with its width in pixels; the first three are always shown.
COLUMNS = {
    "attributes.`Run Name`": 260,
    "runDateAndNestInfo": 130,
    "duration": 80,
    "metrics.`reward_mean`": 110,
    "metrics.`reward_prompt_tail`": 140,
    "metrics.`reward_cvar_10`": 120,
    "metrics.`kl_sft`": 80,
    "tags.`method`": 90,
    "tags.`seed`": 60,
    "attributes.`Models`": 160,
    "attributes.`Dataset`": 260,
}
CREATED = "attribute.`Created`"  # MLflow's own name of this order, `attributes.start_time`, hides runs below others


ABOUT = """\
Runs of the pipeline in `dvc.yaml`; below each pipeline run are its stages. A name holds the preset, the method or the stage, the
seed, and the start of the params' hash.

The saved view *Results* shows, on the test prompts: mean reward, prompt tail and CVaR 10 % (score units, higher is better), KL to
SFT (nats per response). A training has the numbers of its model, a `results` run the means over seeds."""  # noqa: E501


def experiment_tags() -> dict[str, str]:
    """Tags of the experiment: what it is, and the saved view."""
    now = int(time.time() * 1000)
    columns = list(COLUMNS)
    state = {
        "orderByKey": CREATED,
        "orderByAsc": False,
        "selectedColumns": columns[3:],
        "columnOrder": columns,
        "columnWidths": COLUMNS,
    }
    view = {"name": "Results", "createdAt": now, "updatedAt": now, "state": json.dumps(state)}
    return {
        "mlflow.experimentKind": "custom_model_development",  # opens on the runs, not on the pages for chat traces
        "mlflow.note.content": ABOUT,
        TAG: json.dumps(view),
    }


def runs_page(experiment: str, pages: str | None = None) -> str:
    """Address of the list of runs, with the columns of the saved view.

    Args:
        experiment: its id.
        pages: where MLflow's pages are; None: as `server` says.
    """
    query = urlencode({"workflowType": "machine_learning", "viewStateShareKey": VIEW})
    return f"{pages or server()}/#/experiments/{experiment}/runs?{query}"


def run_page(experiment: str, run: str) -> str:
    """Address of one run's page."""
    return f"{server()}/#/experiments/{experiment}/runs/{run}?workflowType=machine_learning"


def server() -> str:
    """Where MLflow's pages are: the server of MLFLOW_TRACKING_URI without its password, or that of `make ui`."""
    address = without_passwords(os.environ.get("MLFLOW_TRACKING_URI", "")).rstrip("/")
    return address if address.startswith("http") else PAGES
