"""What a run uploads: copies that wait to be sent, because their originals may be moved meanwhile."""

import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar

from rarlhf.config.params import Params
from rarlhf.system.launch import first_process
from tasks.tracking.models import ModelCopy

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow.tracking.client import MlflowClient

P = ParamSpec("P")
T = TypeVar("T", bound="Uploads")


class Copies:
    """Copies in a temporary folder, each in a folder of its own; `upload` deletes them one by one."""

    def __init__(self) -> None:
        self._root: Path | None = None

    def place(self, name: str) -> Path:
        """Where to write a file of that name."""
        if self._root is None:
            self._root = Path(tempfile.mkdtemp(prefix="rarlhf-artifacts-"))
        return Path(tempfile.mkdtemp(dir=self._root), name)

    def copy(self, path: Path) -> Path:
        """A copy of a file, or of a folder with all it holds, as they are now."""
        place = self.place(path.name)
        shutil.copytree(path, place) if path.is_dir() else shutil.copy(path, place)
        return place

    def delete(self) -> None:
        """Deletes those that are left."""
        if self._root is not None:
            shutil.rmtree(self._root, ignore_errors=True)


def safe(method: Callable[Concatenate[T, P], None]) -> Callable[Concatenate[T, P], None]:
    """Turns a failure into a warning; does nothing once the run is closed or where nothing is tracked."""

    @wraps(method)
    def call(self: T, /, *args: P.args, **kwargs: P.kwargs) -> None:
        if self.alive:
            try:
                method(self, *args, **kwargs)
            except Exception as error:
                self.refuse(error)

    return call


class Uploads(ABC):
    """The part of a tracker that copies and draws at once what is sent later.

    Attributes:
        alive: whether the run is tracked and not closed yet.
    """

    def __init__(self, root: Path) -> None:
        self.alive = first_process()
        self._copies = Copies()
        self._in_workspace = root.resolve() == Path.cwd()  # not in DVC's temporary copy of it

    @safe
    def figure(self, draw: "Callable[[], Figure | None]", path: str) -> None:
        """Draws a figure and keeps it in the format of the path's suffix, as in `figures/reward.png`.

        A drawing that fails is told as a warning, and the stage goes on; None is not kept.
        """
        figure = draw()
        if figure is not None:
            file = self._copies.place(Path(path).name)
            figure.savefig(file)
            self.upload(file, path)

    @safe
    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Keeps a copy of a file, or of a folder with all it holds, as they are now."""
        self.upload(self._copies.copy(path), "/".join(filter(None, (folder, path.name))))

    @safe
    def model(self, folder: Path, params: Params) -> None:
        """Registers a model: where it is, its size and SHA-256, how it is called; a small one is copied too."""
        self.register(ModelCopy.of(folder, params, self._copies.place("model"), self._in_workspace))

    @abstractmethod
    def upload(self, copy: Path, path: str) -> None:
        """Sends a copy to the run's artifacts, as `path` there, and deletes it."""

    @abstractmethod
    def register(self, copy: ModelCopy) -> None:
        """Registers a model that is copied already."""

    @abstractmethod
    def refuse(self, error: Exception) -> None:
        """Prints one line, once, that something is left out."""


def upload(client: "MlflowClient", run_id: str, copy: Path, path: str) -> None:
    """Sends a copy to a run's artifacts, as `path` there, and deletes it."""
    folder = Path(path).parent.as_posix()
    if copy.is_dir():
        client.log_artifacts(run_id, str(copy), path)
    else:
        client.log_artifact(run_id, str(copy), None if folder == "." else folder)
    shutil.rmtree(copy.parent, ignore_errors=True)
