"""What all tests share."""

import logging
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# Tests run beside each other, one to a core; two jobs of two threads on two cores would wait for one another. Torch
# reads this as it is imported, here and in the processes that tests start.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# A shell's background jobs inherit a SIGINT that is ignored; the processes that tests start and interrupt must heed it.
signal.signal(signal.SIGINT, signal.default_int_handler)
# It says at every matrix product that it rounds to float16; the commands leave that out too.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

# The files that take longest go first, so that no worker is left with one of them at the end.
LONG = (
    "test_pipeline.py",
    "flows/serving/test_deploy.py",
    "flows/test_repro.py",
    "flows/test_pipeline.py",
    "flows/test_ablation.py",
    "rarlhf/rl/test_kill.py",
    "benchmarks/test_run.py",
    "tasks/tracking/test_tracker.py",
    "test_wheel.py",
    "tasks/test_paper_presets.py",
    "rarlhf/system/test_distributed.py",
    "rarlhf/decoding/test_compiled.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the files of LONG first; the order within a file stays."""
    here = Path(__file__).parent
    ranks = {here / name: rank for rank, name in enumerate(LONG)}
    items.sort(key=lambda item: ranks.get(item.path, len(LONG)))


@pytest.fixture
def restored() -> Iterator[None]:
    """Puts the process's threads and determinism back."""
    import torch

    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)


PREFECT_TABLES = """
import asyncio
from prefect.server.database import provide_database_interface
asyncio.run(provide_database_interface().create_db())
"""


@pytest.fixture(scope="session")
def prefect_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new database of Prefect's server, which takes the server some seconds to make."""
    home = tmp_path_factory.mktemp("prefect")
    subprocess.run([sys.executable, "-c", PREFECT_TABLES], env={**os.environ, "PREFECT_HOME": str(home)}, check=True)
    return home / "prefect.db"


@pytest.fixture(scope="session")
def mlflow_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new MLflow store with its tables and nothing in them, which takes MLflow some seconds to make."""
    from tasks.tracking.store import import_mlflow

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    import_mlflow(f"sqlite:///{path}")
    from mlflow.tracking.client import MlflowClient

    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def _tables_at_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """New stores of this process are filled from `mlflow_store`; those of processes that a test starts are not."""
    import tasks.tracking.store

    opened = tasks.tracking.store._opened

    def filled(uri: str, root: Path) -> Any:
        path = Path(uri.removeprefix(tasks.tracking.store.SQLITE))
        if path.is_file():
            with sqlite3.connect(path) as store:
                if not store.execute("SELECT name FROM sqlite_master").fetchone():
                    with sqlite3.connect(request.getfixturevalue("mlflow_store")) as tables:
                        store.executescript(";".join(tables.iterdump()))
        return opened(uri, root)

    monkeypatch.setattr(tasks.tracking.store, "_opened", filled)
