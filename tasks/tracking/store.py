"""MLflow's store: one process at a time opens it, makes a missing experiment, and closes runs of dead processes."""

import importlib
import logging
import os
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from tasks.tracking.views import experiment_tags

if TYPE_CHECKING:
    from mlflow.tracking.client import MlflowClient

EXPERIMENT = "rarlhf"
ARTIFACTS = "mlartifacts"  # folder beside the store
PLACES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
SQLITE = "sqlite:///"
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",  # the word: MLflow ignores 1
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",  # seconds; nothing waits for it but the thread that sends
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # tasks.tracking.sender tries again
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING": "true",  # of stages; `false` in the environment turns it off
}


def store_uri(root: Path) -> str:
    """What MLFLOW_TRACKING_URI says, or `mlflow.db` in `root`."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}{root}/mlflow.db"


def import_mlflow(uri: str) -> None:
    """Imports what a thread uses later: two threads that import at once can see a package half loaded."""
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    store = "rest_store" if uri.startswith("http") else "sqlalchemy_store"
    for name in ("mlflow.tracking.client", f"mlflow.store.tracking.{store}", "tasks.tracking.machine"):
        importlib.import_module(name)
    for name in ("mlflow", "alembic", "urllib3"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # the one warning is ours


def prepare_store(root: Path) -> tuple["MlflowClient", str]:
    """Opens the store, making it and its experiment if missing; returns a client and the experiment's id."""
    uri = store_uri(root)
    import_mlflow(uri)
    if not uri.startswith(SQLITE):
        return _opened(uri, root)
    with _locked(root / ".mlflow.lock"):  # two processes that open a fresh store at once break it
        with sqlite3.connect(uri.removeprefix(SQLITE)) as store:
            store.execute("PRAGMA journal_mode=WAL")  # readers do not block writers; 13 ms a logged step become 5
            if not os.environ.get("MLFLOW_TRACKING_URI"):
                _follow_folder(store, root)
        store.close()
        return _opened(uri, root)


def close_dead_runs(client: "MlflowClient", experiment: str) -> None:
    """Ends as KILLED the runs of this machine whose process is gone; after kill -9 they would stay RUNNING for ever."""
    mine = f"attributes.status = 'RUNNING' and tags.host = '{socket.gethostname()}'"
    for run in client.search_runs([experiment], mine):
        if not _is_alive(int(run.data.tags["pid"]), float(run.data.tags["process_start"])):
            client.set_terminated(run.info.run_id, "KILLED")


def process_tags() -> dict[str, str]:
    """Tags that tell a later process whether this one still lives."""
    import psutil

    pid = os.getpid()
    return {"host": socket.gethostname(), "pid": str(pid), "process_start": str(psutil.Process(pid).create_time())}


def _opened(uri: str, root: Path) -> tuple["MlflowClient", str]:
    from mlflow.tracking.client import MlflowClient

    client = MlflowClient(uri)
    found = client.get_experiment_by_name(EXPERIMENT)
    if found is None:
        artifacts = None if os.environ.get("MLFLOW_TRACKING_URI") else _artifacts_uri(root)
        return client, client.create_experiment(EXPERIMENT, artifacts, experiment_tags())
    for key, value in experiment_tags().items():
        if key not in found.tags:  # what someone has changed on MLflow's pages stays
            client.set_experiment_tag(found.experiment_id, key, value)
    return client, str(found.experiment_id)


def _artifacts_uri(root: Path) -> str:
    return (root.resolve() / ARTIFACTS).as_uri()


def _follow_folder(store: sqlite3.Connection, root: Path) -> None:
    """Points the store's runs at the artifacts in the store's folder, where that was moved or copied.

    MLflow records full addresses. (It makes relative ones full when it creates an experiment, and only a server
    understands a server's.) Artifacts that are only at the old place stay there.
    """
    there = {name for (name,) in store.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if "experiments" not in there:
        return
    new = _artifacts_uri(root)
    known = {str(uri) for (uri,) in store.execute("SELECT artifact_location FROM experiments")}
    for old in (uri for uri in known if uri != new and uri.startswith("file:") and uri.endswith(f"/{ARTIFACTS}")):
        for table, column in (place for place in PLACES if place[0] in there):
            begun = f"SELECT DISTINCT {column} FROM {table} WHERE {column} = ? OR instr({column}, ?) = 1"
            for (uri,) in store.execute(begun, (old, f"{old}/")).fetchall():
                moved = new + uri.removeprefix(old)
                if uri == old or _exists(moved) or not _exists(uri):
                    store.execute(f"UPDATE {table} SET {column} = ? WHERE {column} = ?", (moved, uri))


def _exists(uri: str) -> bool:
    return Path(unquote(urlsplit(uri).path)).exists()


def _is_alive(pid: int, start: float) -> bool:
    """Whether a process lives and started at that time (epoch seconds); a later one may have its number."""
    import psutil

    try:
        return bool(abs(psutil.Process(pid).create_time() - start) < 1)
    except psutil.NoSuchProcess:
        return False


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    import fcntl

    with path.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
