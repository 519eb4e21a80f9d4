"""The folder by which a run of the pipeline and its stages' processes find each other.

Its path is in the environment variable RARLHF_PIPELINE. The pipeline's run writes its id there, and each stage writes a
line when it starts and one when it ends. MLflow is not asked for either.
"""

import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from rarlhf.system.files import replaced

PIPELINE = "RARLHF_PIPELINE"
PARENT_FILE = "run"  # id of the parent run, there as soon as MLflow has given it
STAGES_FILE = "stages.jsonl"
PARENT_SECONDS = 20.0  # a stage's run waits this long for its parent's id, in the background


def pipeline_name() -> str:
    """What the runs of one run of the pipeline have in common, as the tag `pipeline`.

    Empty where a stage was started by hand.
    """
    if folder := os.environ.get(PIPELINE):
        return Path(folder).name
    import psutil

    for process in psutil.Process().parents():
        with suppress(psutil.Error):
            if any(Path(word).name == "dvc" for word in process.cmdline()[:3]):
                return f"dvc-{datetime.fromtimestamp(process.create_time()):%Y%m%d-%H%M%S}-{process.pid}"
    return ""


def publish_parent(run_id: str, folder: Path) -> None:
    """Gives the id of the pipeline's run to the stages' processes; nothing where the folder is gone."""
    if folder.is_dir():
        with replaced(folder / PARENT_FILE) as partial:
            partial.write_text(run_id, encoding="utf-8")


def parent_run() -> str:
    """Id of the run that this process's run belongs below; empty where there is none."""
    folder = Path(os.environ.get(PIPELINE) or "/nonexistent")
    end = time.monotonic() + PARENT_SECONDS
    while folder.is_dir() and time.monotonic() < end:
        with suppress(OSError):
            return (folder / PARENT_FILE).read_text(encoding="utf-8").strip()
        time.sleep(0.1)
    return ""


def tell_stage(line: Mapping[str, object]) -> None:
    """Adds a line of a stage to the folder, where this process is part of a run of the pipeline."""
    folder = os.environ.get(PIPELINE)
    if folder and Path(folder).is_dir():
        with suppress(OSError), Path(folder, STAGES_FILE).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")


def told_stages(folder: Path) -> dict[str, dict[str, Any]]:
    """The last line of each stage that started."""
    try:
        lines = (folder / STAGES_FILE).read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    whole = [line for line in lines if line.endswith("}")]  # a full disk cuts a line short
    return {entry["stage"]: entry for entry in map(json.loads, whole)}
