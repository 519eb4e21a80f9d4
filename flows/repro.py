"""The pipeline without Prefect, which `make repro` calls: `python -m flows.repro [stage ...]`.

Stages run as in the flow (flows.running), as many at the same time as fit the machine, with one run in MLflow above
theirs. Plain `dvc repro` does the same one stage after another.
"""

import argparse
import signal
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from types import FrameType
from typing import NoReturn

from flows.running.devices import Shares
from flows.running.left import in_words
from flows.running.lockfile import order_lock
from flows.running.processes import Processes
from flows.running.reproduce import GOOD, RETRY_SECONDS, Ended, PassingTrouble, Repro, StageError, reproduce
from flows.running.schedule import in_order
from flows.running.survey import Survey, survey
from flows.running.view import View
from flows.serving.workspace import hold_workspace
from rarlhf.config.errors import UserError
from rarlhf.config.load import load_params
from tasks.tracking.forks import tracking_process
from tasks.tracking.pipeline import Pipeline, pipeline_run
from tasks.tracking.views import runs_page

ABOUT = """\
Bring all stages, or those that are named with what they need, up to date. Stages
that do not need each other run at the same time."""
FAILED = 255  # exit status of `dvc repro` where a stage failed
SIGNALS = (signal.SIGINT, signal.SIGTERM)
STOPPED = "stopped; the finished stages are kept, and the same command runs the rest"


class Reproduction:
    """One run of what has to be done.

    Attributes:
        ended: how each stage ended; complete after `run`.
        errors: the error of each stage that failed.
        brought: the stages that were not up to date and were started.
    """

    def __init__(self, found: Survey, repro: Repro, view: View) -> None:
        self.ended: dict[str, Ended] = {}
        self.errors: dict[str, StageError] = {}
        self.brought: list[str] = []
        self._found = found
        self._repro = repro
        self._view = view

    def run(self) -> None:
        """Runs the stages; returns when all have ended, or were left out because one that they need failed.

        An exception, such as the KeyboardInterrupt of a signal, makes the running stages save and end.
        """
        number = self._repro.shares.number
        futures: list[Future[None]] = []
        # In this order: the pool waits for its workers, and those for the processes.
        with self._view, ThreadPoolExecutor(number) as pool, self._repro.processes:

            def start(stage: str) -> Future[None]:
                futures.append(self._start(stage, pool))
                return futures[-1]

            in_order(self._found.graph, start, number)
        for future in futures:
            future.result()  # raises what nobody expected

    def _start(self, stage: str, pool: ThreadPoolExecutor) -> "Future[None]":
        needed = [self.ended[other] for other in self._found.graph[stage]]
        if stage not in self._found.fresh and all(ended in GOOD for ended in needed):
            self.brought.append(stage)
            self.ended[stage] = Ended.FAILED  # until it is known to have ended otherwise
            return pool.submit(self._bring, stage)
        self.ended[stage] = Ended.CACHED if stage in self._found.fresh else Ended.NOT_RUN
        if stage not in self._found.fresh:
            self._view.leave_out(stage)
        over: Future[None] = Future()
        over.set_result(None)
        return over

    def _bring(self, stage: str) -> None:
        """Brings a stage up to date; tries again, once, where its failure may pass."""
        self._view.start(stage)
        try:
            self.ended[stage] = self._again_if_it_may_pass(stage)
        except StageError as error:
            self.errors[stage] = error
        finally:
            self._view.end(stage, self.ended[stage])

    def _again_if_it_may_pass(self, stage: str) -> Ended:
        def say(text: str) -> None:
            self._view.line(stage, text)

        try:
            return reproduce(stage, self._repro, say)
        except PassingTrouble as error:
            say(f"tried again in {RETRY_SECONDS:.0f} s, because this may pass: {error}")
            self._repro.processes.wait(RETRY_SECONDS)
            return reproduce(stage, self._repro, say)

    def tell(self, pipeline: Pipeline) -> None:
        """Records how the stages ended; what a stage's own process has told stays."""
        told = pipeline.ran()
        for stage in self._found.graph:
            ended = self.ended.get(stage, Ended.NOT_RUN)
            if ended is Ended.CACHED or told.get(stage) in (None, Ended.COMPLETED):
                pipeline.stage(stage, ended.value)

    def say_what_failed(self) -> None:
        """Prints what was left out, and the error of each failed stage."""
        left = [stage for stage, ended in self.ended.items() if ended is Ended.NOT_RUN]
        if left:
            print(f"not run, because they need what failed: {', '.join(left)}", flush=True)
        for error in self.errors.values():
            own = [line for line in error.told if line.startswith("error:")] or [f"error: {error}"]
            print("\n".join(own), file=sys.stderr, flush=True)


def main() -> int:
    """The command line; returns the exit status, which is DVC's where a stage failed.

    Problems in params.yaml are reported first: DVC makes stages from its lists, and would report only those.
    """
    options = _parser().parse_args()
    try:
        params = load_params()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for number in SIGNALS:
        signal.signal(number, _interrupt)
    try:
        with hold_workspace(_say) as held, pipeline_run("flows.repro") as pipeline:
            pipeline.open(params)
            return _reproduce(options, pipeline, Processes([held]))
    except KeyboardInterrupt:
        return _stopped()


def _reproduce(options: argparse.Namespace, pipeline: Pipeline, processes: Processes) -> int:
    """Runs what has to be done, and says and records how that ended; returns the exit status."""
    found = survey(options.targets, options.force, options.parallel)
    if found is None:
        pipeline.close("FAILED")
        return FAILED
    shares = Shares(found.shares)
    run = Reproduction(
        found, Repro(options.force, None, processes, shares), View(found.graph, found.fresh, shares.number)
    )
    begun, stopped = time.monotonic(), False
    idle = set(found.graph) <= set(found.fresh)
    try:
        with nullcontext() if idle else tracking_process(pipeline.folder):
            run.run()
    except KeyboardInterrupt:
        stopped = True
    _ignore_signals()
    order_lock(found.locked, found.order)
    run.tell(pipeline)
    good = not stopped and all(ended in GOOD for ended in run.ended.values())
    experiment = pipeline.experiment
    pipeline.close("KILLED" if stopped else "FINISHED" if good else "FAILED")
    if good:
        ran = f"; {len(run.brought)} of them were not, {in_words(time.monotonic() - begun)}" if run.brought else ""
        _say(f"all {len(found.graph)} stages are up to date{ran}")
    else:
        run.say_what_failed()
    if experiment:
        _say(f"runs in MLflow (`make ui` serves the page): {runs_page(experiment)}")
    return 0 if good else _stopped() if stopped else FAILED


def _stopped() -> int:
    print(f"error: {STOPPED}", file=sys.stderr, flush=True)
    return FAILED


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    """Stops the run; a second signal does nothing, because the stages are then saving."""
    _ignore_signals()
    raise KeyboardInterrupt


def _ignore_signals() -> None:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _say(text: str) -> None:
    print(text, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m flows.repro", description=ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("targets", nargs="*", help="stages (default: all)")
    parser.add_argument("--force", action="store_true", help="run stages that are up to date too")
    parser.add_argument(
        "--parallel",
        type=_positive,
        help="how many stages may run at the same time (default: one for each accelerator, or as many as fit the CPU)",
    )
    return parser


def _positive(text: str) -> int:
    """A number above zero.

    Raises: argparse.ArgumentTypeError if it is none.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text[:20]!r}: expected a number of at least 1")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
