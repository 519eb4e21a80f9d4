"""What every stage shares: command line, parameters, inputs, outputs, resume, tracking, and how it ends.

A stage is a function `(run, arguments...)` under the decorator `stage`; its command line is derived from its signature:

    @stage
    def sft(run: Run, base: Path, out: Path) -> None:      # python -m tasks.sft --base models/base --out models/sft
        with run.output(out) as folder:
            train_sft(base, folder, run.params, run.recorder)

Exit status: 0 done; 1 failed; 2 wrong arguments; 75 failed for a reason that may pass, such as a network read; 130 and
143 stopped by SIGINT and SIGTERM. Unless it is 0, the outputs are as they were before.
"""

import argparse
import errno
import inspect
import logging
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property, wraps
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, get_args, get_origin, get_type_hints

from rarlhf.config.errors import PASSING_STATUS, UserError, may_pass
from rarlhf.config.escapes import safe
from rarlhf.config.load import load_params
from rarlhf.config.params import Params
from rarlhf.system.launch import first_process
from tasks.inputs import Inputs, label, lookup, read_inputs
from tasks.running.code import refuse_edited
from tasks.running.outputs import Outputs, remove
from tasks.running.spared import spare
from tasks.tracking.apart import StageTracker
from tasks.tracking.passwords import without_passwords
from tasks.tracking.record import stage_record

ENVIRONMENT = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "OMP_WAIT_POLICY": "PASSIVE",  # waiting threads sleep: two jobs on two cores took 147 s without it, 8 s with
    "PYTHONUNBUFFERED": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # deterministic matrix products on CUDA
    "PYTHONHASHSEED": "0",
}
CHECKPOINTS = ".checkpoints"
MODELS = "models"  # outputs in this folder are shown as models
OLD_CHECKPOINTS = 3  # folders kept of the same stage with other inputs
FULL_DISK_BYTES = 1 << 20

_UNTOUCHED = "its outputs are as they were"
_DISK_FULL = (
    f"the disk is full; {_UNTOUCHED}. Make room in {{folder}} (`dvc gc --workspace` deletes cached results that are "
    "no longer used; old folders in .checkpoints/ may be deleted too), then run again"
)


class Terminated(BaseException):
    """SIGTERM, raised in the main thread so that `finally` blocks run."""


class StageRecorder:
    """Writes lines to the log and sends numbers to the tracker."""

    def __init__(self, tracker: StageTracker) -> None:
        self._tracker = tracker

    def record(self, step: int, values: Mapping[str, float]) -> None:
        """Sends `values` at `step` to the tracker."""
        self._tracker.metrics({name: value for name, value in values.items() if name != "iteration"}, step)

    def samples(self, rows: Sequence[Mapping[str, object]]) -> None:
        """Adds rows to the run's table of samples."""
        self._tracker.table(rows, "samples.json")

    def say(self, text: str) -> None:
        """Prints a line."""
        if first_process():
            print(text, flush=True)


class Run:
    """One run of a stage, handed to its function.

    Attributes:
        name: as DVC names it, `ppo@rlhf-1`.
        params: the parameters, loaded and validated.
        inputs: the stage's own parameters and its files.
        tracker: the run in MLflow; never raises.
        recorder: for the long steps of `rarlhf`.
    """

    def __init__(self, params: Params, inputs: Inputs, tracker: StageTracker) -> None:
        self.name = inputs.stage
        self.params = params
        self.inputs = inputs
        self.tracker = tracker
        self.recorder = StageRecorder(tracker)
        self._outputs = Outputs()

    @property
    def inputs_hash(self) -> str:
        """SHA-256 of everything that decides the stage's outputs, in hexadecimal."""
        return self.inputs.hash

    def log(self, text: str) -> None:
        """Prints a line."""
        self.recorder.say(text)

    def output(self, path: Path) -> AbstractContextManager[Path]:
        """A context that yields a place to write `path`; it is moved to `path` when the whole stage has succeeded.

        The place is an empty folder or, where `path` has a suffix, the name of a new file.
        """
        return self._outputs.write(path)

    @cached_property
    def checkpoints(self) -> Path:
        """Folder that a later run of the stage with the same inputs finds again; deleted when the stage succeeds."""
        prefix = self.name.replace("@", "-")
        folder = root() / CHECKPOINTS / f"{prefix}-{self.inputs_hash[:16]}"
        folder.mkdir(parents=True, exist_ok=True)
        if first_process():
            others = [path for path in folder.parent.glob(f"{prefix}-{'[0-9a-f]' * 16}") if path != folder]
            for path in sorted(others, key=lambda path: path.stat().st_mtime, reverse=True)[OLD_CHECKPOINTS:]:
                remove(path)
        return folder

    def finish(self) -> None:
        """Moves the outputs into place and deletes the checkpoints.

        Raises: UserError if params.yaml or the code was edited while the stage ran.
        """
        self._refuse_edited_params()
        refuse_edited(self.inputs.files)
        targets = self._outputs.commit()
        for path in targets:
            if path.parts[0] == MODELS and any(path.iterdir()):  # a scorer that is left out has an empty folder
                self.tracker.model(path, self.params)
        if "checkpoints" in vars(self) and first_process():
            remove(self.checkpoints)

    def discard(self) -> None:
        """Deletes outputs that were not moved into place."""
        self._outputs.discard()

    def _refuse_edited_params(self) -> None:
        """DVC would record the new values with outputs made from the old ones."""
        now = load_params().model_dump(mode="json")
        changed = [key for key, value in self.inputs.params.items() if lookup(now, key) != value]
        if changed:
            keys = ", ".join(key for key in changed if key) or "every key counts"
            raise UserError(f"params.yaml was edited while this ran ({keys}); its output was deleted, run again")


def stage(function: Callable[..., None]) -> Callable[[], NoReturn]:
    """Makes a stage's function a command; without the decorator (`__wrapped__`) it takes the run and its arguments."""

    @wraps(function)
    def command() -> NoReturn:
        sys.exit(run_stage(function, sys.argv[1:]))

    return command


def run_stage(function: Callable[..., None], argv: list[str]) -> int:
    """Runs a stage's function with a command line and returns the exit status."""
    arguments = _parse(function, argv)
    name = label(function.__name__, arguments)
    try:
        with _signals():
            _execute(function, arguments)
    except UserError as error:
        return _say(f"error: {name}: {error}", _failed(error))
    except KeyboardInterrupt:
        return _say(f"error: {name}: stopped; {_UNTOUCHED}", 130)
    except Terminated:
        return _say(f"error: {name}: terminated; {_UNTOUCHED}", 143)
    except Exception as error:
        return _say(_missing_input(name, error) or traceback.format_exc().rstrip(), _failed(error))
    return 0


def _missing_input(name: str, error: Exception) -> str | None:
    """One line for a file of the workspace that is not there; None for any other error."""
    if isinstance(error, FileNotFoundError) and error.filename and not Path(error.filename).is_absolute():
        return f"error: {name}: {error.filename} is missing; {_UNTOUCHED}. `dvc repro` makes what a stage reads"
    return None


def root() -> Path:
    """The main repository's root, also where DVC runs the stage in a temporary copy."""
    return Path(os.environ.get("DVC_ROOT") or Path.cwd())


def _execute(function: Callable[..., None], arguments: Mapping[str, Any]) -> None:
    params = load_params()
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    os.environ["OMP_NUM_THREADS"] = str(params.runtime.threads)
    if function.__module__ == "__main__":  # the process is this stage's alone
        spare(function.__name__, params)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # advises optional kernels at import
    inputs = read_inputs(function.__name__, arguments, params)
    refuse_edited(inputs.files)
    tracker = StageTracker(stage_record(function.__name__, arguments, params, inputs), root())
    run = Run(params, inputs, tracker)
    with _closing(run):
        function(run, **arguments)
        run.finish()


@contextmanager
def _closing(run: Run) -> Iterator[None]:
    """Ends the run in MLflow as it ended here, and leaves nothing half-written."""
    try:
        yield
    except (KeyboardInterrupt, Terminated):
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # a second signal must not cut the tidying short
        run.discard()
        run.tracker.close("KILLED")
        raise
    except BaseException as error:
        full = not isinstance(error, UserError) and _disk_full(error)  # asked before room is made
        run.discard()
        run.tracker.close("FAILED")
        if full:
            raise UserError(_DISK_FULL.format(folder=root())) from error
        raise
    run.tracker.close("FINISHED")


@contextmanager
def _signals() -> Iterator[None]:
    """SIGINT and SIGTERM as exceptions in the main thread, whatever the parent process set."""
    old = {
        signal.SIGINT: signal.signal(signal.SIGINT, signal.default_int_handler),
        signal.SIGTERM: signal.signal(signal.SIGTERM, _terminate),
    }
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise Terminated


def _disk_full(error: BaseException) -> bool:
    """Whether a full disk caused an error: by its code, its text (libraries hide the code), or the space left."""
    told = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)
    cause = error.__cause__ or error.__context__
    return told or shutil.disk_usage(".").free < FULL_DISK_BYTES or (cause is not None and _disk_full(cause))


def _parse(function: Callable[..., None], argv: list[str]) -> dict[str, Any]:
    """The function's arguments after the run, read from a command line derived from its signature."""
    parser = argparse.ArgumentParser(f"python -m tasks.{function.__name__}", description=inspect.getdoc(function))
    hints = get_type_hints(function)
    for name in list(inspect.signature(function).parameters)[1:]:
        many = get_origin(hints[name]) is list
        kind = get_args(hints[name])[0] if many else hints[name]
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, nargs="+" if many else None, required=True)
    return vars(parser.parse_args(argv))


def _failed(error: Exception) -> int:
    return PASSING_STATUS if may_pass(error) else 1


def _say(text: str, status: int) -> int:
    print(safe(without_passwords(text)), file=sys.stderr, flush=True)  # what a user's scorer raises may hold any text
    return status
