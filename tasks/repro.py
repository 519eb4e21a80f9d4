"""`dvc repro` with one run in MLflow above the runs of the stages: `python -m tasks.repro`, which `make repro` calls.

DVC writes to the terminal itself, and its exit status is the command's. Tracking starts while DVC reads its graph.
"""

import signal
import subprocess
import sys
from contextlib import suppress
from types import FrameType

import psutil

from rarlhf.config.errors import UserError
from rarlhf.config.load import load_params
from tasks.inputs import run_names
from tasks.tracking.pipeline import CACHED, UNKNOWN, Pipeline, pipeline_run
from tasks.tracking.views import runs_page

STOPPED = (-signal.SIGINT, -signal.SIGTERM, -signal.SIGKILL, 128 + signal.SIGINT, 128 + signal.SIGTERM)


def main() -> int:
    """Runs `dvc repro` with the arguments given; returns its exit status.

    Problems in params.yaml are reported first: DVC makes stages from its lists, and would report only those.
    """
    try:
        params = load_params()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    stopped = []

    def stop(number: int, frame: FrameType | None) -> None:
        stopped.append(number)
        if number == signal.SIGTERM:
            _stop(process)

    with pipeline_run("tasks.repro") as pipeline:
        for number in (
            signal.SIGINT,
            signal.SIGTERM,
        ):  # Ctrl-C reaches DVC and its stage too, and they end by themselves
            signal.signal(number, stop)
        process = subprocess.Popen([sys.executable, "-m", "dvc", "repro", *sys.argv[1:]])
        pipeline.open(params)
        status = process.wait()
        _tell_stages(pipeline, done=status == 0)
        killed = bool(stopped) or status in STOPPED
        experiment = pipeline.experiment
        pipeline.close("KILLED" if killed else "FAILED" if status else "FINISHED")
        if experiment:
            print(f"runs in MLflow (`make ui` serves the page): {runs_page(experiment)}", flush=True)
    return 128 - status if status < 0 else status


def _tell_stages(pipeline: Pipeline, done: bool) -> None:
    """Records the stages that DVC did not run: they were up to date or, where DVC failed, perhaps not reached."""
    with suppress(Exception):  # DVC has reported what is wrong with dvc.yaml
        ran = pipeline.ran()
        for name in run_names(load_params()):
            if name not in ran:
                pipeline.stage(name, CACHED if done else UNKNOWN)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ends DVC and its stage. DVC gives its lock back only on SIGINT, and not while a stage runs."""
    with suppress(psutil.NoSuchProcess):
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        for child in children:
            child.terminate()


if __name__ == "__main__":
    sys.exit(main())
