"""What a run uploads: copies that wait to be sent, because their originals may be moved meanwhile."""

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow.tracking.client import MlflowClient


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


def upload(client: "MlflowClient", run_id: str, copy: Path, path: str) -> None:
    """Sends a copy to a run's artifacts, as `path` there, and deletes it."""
    folder = Path(path).parent.as_posix()
    if copy.is_dir():
        client.log_artifacts(run_id, str(copy), path)
    else:
        client.log_artifact(run_id, str(copy), None if folder == "." else folder)
    shutil.rmtree(copy.parent, ignore_errors=True)
