"""The flow `rarlhf`: the stages of dvc.yaml as Prefect tasks, one at a time, in the order of its graph.

Each task runs `dvc repro` for its one stage, so that DVC alone decides what is fresh. A stage that fails does not stop
those that do not need it. Without a server: `python -m flows.pipeline [stage ...] [--set risk.alpha=0.2]`.
"""

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.client.schemas.objects import State, TaskRun
from prefect.states import Completed, Failed
from ruamel.yaml import YAML

from flows.graph import Graph, read_graph
from flows.server import local_settings
from rarlhf.errors import UserError
from rarlhf.params import Params, load_params
from tasks.preset import apply_preset, override
from tasks.tracking_pipeline import pipeline_run

CACHED = ("didn't change, skipping", "is cached - skipping run")
PASSING = ("exited with -9", "exited with 137", "Connection", "timed out", "Temporary failure in name resolution")
LAST_LINES = 10  # of a failed stage, where a passing trouble is looked for
STOP_SECONDS = 10.0  # between one signal to a stage and the next, stronger one


class PassingTrouble(RuntimeError):
    """A stage failed by something that may not happen again: its process was killed, or the network."""


def _may_pass(_task: object, _run: TaskRun, state: State[Any]) -> bool:
    return isinstance(state.result(raise_on_failure=False), PassingTrouble)


@task(retries=1, retry_condition_fn=_may_pass)
def run_stage(stage: str, force: bool) -> State[None]:
    """Brings one stage up to date; its log lines go to Prefect's log."""
    logger = get_run_logger()
    lines = []
    with _repro(stage, force) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line.rstrip())
            logger.info(lines[-1])
    if process.returncode:
        _fail(stage, lines)
    cached = any(text in line for line in lines for text in CACHED)
    return Completed(name="Cached") if cached else Completed()


def _fail(stage: str, lines: Sequence[str]) -> None:
    """Raises what the last lines of a failed `dvc repro` tell."""
    told = [line for line in lines if line.startswith(("error:", "ERROR:"))] or lines[-1:]
    passing = any(text in line for line in lines[-LAST_LINES:] for text in PASSING)
    kind = PassingTrouble if passing else RuntimeError
    raise kind(f"{stage}: {' '.join(told)}")


@contextmanager
def _repro(stage: str, force: bool) -> Iterator[subprocess.Popen[str]]:
    """`dvc repro` of one stage in a process group of its own, which does not outlive the context."""
    command = [
        sys.executable,
        "-m",
        "dvc",
        "--wait-for-lock",
        "repro",
        "--single-item",
        *(["--force"] if force else []),
    ]
    bin_folder = str(Path(sys.executable).parent)  # the stages call `python`
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "PATH": os.pathsep.join((bin_folder, os.environ["PATH"]))}
    process = subprocess.Popen(
        [*command, stage],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        start_new_session=True,
    )
    try:
        yield process
        process.wait()
    finally:
        _stop(process)


def _stop(process: subprocess.Popen[str]) -> None:
    """Ends what is left of the process and its children; DVC gives its lock back on SIGINT only."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        if process.poll() is not None:
            break
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
    if process.stdout is not None:
        process.stdout.close()


@flow(name="rarlhf")
def rarlhf(
    targets: list[str] | None = None,
    overrides: dict[str, Any] | None = None,
    force: bool = False,
    preset: str | None = None,
) -> State[None]:
    """Brings the pipeline, or what the targets need, up to date.

    Args:
        targets: names of stages; all where empty.
        overrides: dotted keys of params.yaml and the values to put there before, as {"risk.alpha": 0.2}; they stay.
        force: whether to run stages that are up to date too.
        preset: name of a preset to put over params.yaml first.
    """
    logger = get_run_logger()
    try:
        graph, params = _prepare(targets or [], overrides or {}, preset)
    except UserError as error:
        logger.error(str(error))
        return Failed(message=str(error))
    with pipeline_run("flows.pipeline") as pipeline:
        pipeline.open(params)
        states = _run_stages(graph, force)
        names = {stage: state.name or state.type.value for stage, state in states.items()}
        for stage, name in names.items():
            pipeline.stage(stage, name)
        failed = [stage for stage, state in states.items() if not state.is_completed()]
        pipeline.close("FAILED" if failed else "FINISHED")
    if failed:
        return Failed(message="not done: " + ", ".join(f"{stage} ({names[stage]})" for stage in failed))
    return Completed(message=f"{len(names)} stages, {list(names.values()).count('Cached')} of them were up to date")


def _prepare(targets: list[str], overrides: Mapping[str, Any], preset: str | None) -> tuple[Graph, Params]:
    """Puts what was asked for into params.yaml and reads the graph that follows from it."""
    if preset:
        get_run_logger().info(apply_preset(preset))
    if overrides:
        override(overrides)
    return read_graph(targets), load_params()


def _run_stages(graph: Graph, force: bool) -> dict[str, State[Any]]:
    """The final state of each stage; a stage whose upstream failed is not started."""
    states: dict[str, State[Any]] = {}
    for stage, upstream in graph.items():
        named = run_stage.with_options(name=stage, task_run_name=stage)
        waits = [states[name] for name in upstream if name in states]
        states[stage] = named(stage, force, wait_for=waits, return_state=True)
    return states


def _setting(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text}: expected key=value")
    return key, YAML(typ="safe").load(value)


def main() -> int:
    """Runs the flow in this process, with a server where one answers; returns the exit status."""
    parser = argparse.ArgumentParser("python -m flows.pipeline", description="Run the flow rarlhf in this process.")
    parser.add_argument("targets", nargs="*", help="stages; all where none is named")
    parser.add_argument("--set", type=_setting, action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    parser.add_argument("--force", action="store_true", help="run stages that are up to date too")
    parser.add_argument("--preset", help="preset to put over params.yaml first")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # else a temporary server would live on
    try:
        with local_settings():
            state = rarlhf(options.targets, dict(options.overrides), options.force, options.preset, return_state=True)
    except KeyboardInterrupt:
        print("error: stopped", file=sys.stderr)
        return 128 + signal.SIGINT
    return 0 if state.is_completed() else 1


if __name__ == "__main__":
    sys.exit(main())
