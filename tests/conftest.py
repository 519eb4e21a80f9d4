"""What all tests share."""

import fcntl
import logging
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts files with slow tests first, so that no worker is left with one of them at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


MadeOnce = Callable[[str, Callable[[Path], None]], Path]


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> MadeOnce:
    """`made_once(name, make)` is a folder that all workers share; the first that asks makes it, and others wait."""
    own = tmp_path_factory.getbasetemp()
    shared = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "shared"

    def folder(name: str, make: Callable[[Path], None]) -> Path:
        shared.mkdir(exist_ok=True)
        path, done = shared / name, shared / f"{name}.done"
        with (shared / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                shutil.rmtree(path, ignore_errors=True)
                path.mkdir()
                make(path)
                done.touch()
        return path

    return folder


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
def prefect_database(made_once: MadeOnce) -> Path:
    """A new database of Prefect's server, which takes the server some seconds to make."""

    def make(home: Path) -> None:
        environment = {**os.environ, "PREFECT_HOME": str(home)}
        subprocess.run([sys.executable, "-c", PREFECT_TABLES], env=environment, check=True)

    return made_once("prefect", make) / "prefect.db"


@pytest.fixture(scope="session")
def mlflow_store(made_once: MadeOnce) -> Path:
    """A new MLflow store with its tables and nothing in them, which takes MLflow some seconds to make."""
    from tasks.tracking.store import import_mlflow

    def make(folder: Path) -> None:
        import_mlflow(f"sqlite:///{folder}/mlflow.db")
        from mlflow.tracking.client import MlflowClient

        MlflowClient(f"sqlite:///{folder}/mlflow.db").search_experiments()

    return made_once("mlflow", make) / "mlflow.db"


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
