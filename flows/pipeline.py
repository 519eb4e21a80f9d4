"""The flow `rarlhf`: the stages of dvc.yaml as Prefect tasks, in the order of its graph.

Without a server: `python -m flows.pipeline [stage ...] [--set risk.alpha=0.2]`.
"""

import argparse
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Annotated, Any

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed, Failed
from pydantic import Field

from flows.artifacts import publish_mlflow_link, publish_results
from flows.machines.places import places
from flows.running.command import status_of, value_of
from flows.running.devices import Shares, stage_shares
from flows.running.graph import look
from flows.running.lockfile import names_in_lock, order_lock
from flows.running.processes import Processes
from flows.running.remote import fetch_run_cache, push
from flows.running.reproduce import Repro
from flows.running.request import prepare
from flows.running.stages import run_stages
from flows.serving.server import local_settings
from flows.serving.workspace import hold_workspace
from rarlhf.config.errors import UserError
from rarlhf.config.load import load_params
from tasks.preset import PARAMS, overridden, params_of
from tasks.tracking.forks import tracking_process
from tasks.tracking.passwords import without_passwords
from tasks.tracking.pipeline import Pipeline, pipeline_run
from tasks.tracking.record import run_name
from tasks.tracking.views import runs_page

EVALUATE = "evaluate"
ABOUT = """\
Bring all stages, or those that are named, up to date by the Prefect flow rarlhf in
this process. It does what `dvc repro` does. In addition it runs independent stages
at the same time, tries a stage again whose failure may pass, makes one run in MLflow
for the whole pipeline, and can share results through a DVC remote."""
EXAMPLE = """\
example:
  python -m flows.pipeline evaluate --set risk.alpha=0.2 --set 'seeds=[1, 2]'"""
MLFLOW_SECONDS = 5.0  # how long the link to MLflow's page waits for its answer


def _flow_run_name() -> str:
    """Name of the flow run that begins: preset, what it is, and the start of the hash of the params it asks for."""
    asked = flow_run.parameters
    try:
        params = params_of(overridden(asked.get("overrides") or {}, asked.get("preset")), str(PARAMS))
    except (UserError, OSError):  # the run itself says what is wrong
        return "rarlhf"
    return run_name(params, *(asked.get("targets") or ["pipeline"]))


@flow(name="rarlhf", flow_run_name=_flow_run_name)
def rarlhf(
    targets: list[str] | None = None,
    overrides: dict[str, Any] | None = None,
    force: bool = False,
    preset: str | None = None,
    parallel: Annotated[int, Field(ge=1)] | None = None,
    remote: str | None = None,
    pool: str | None = None,
) -> State[None]:
    """Brings the pipeline, or what the targets need, up to date. One run at a time works in a workspace.

    Args:
        targets: names of stages; all where empty.
        overrides: dotted keys of params.yaml and their new values, as {"risk.alpha": 0.2}; they stay there.
        force: whether to run stages that are up to date too.
        preset: name of a preset that replaces params.yaml first.
        parallel: how many stages may run at the same time; where empty, one for each accelerator, or on a CPU as
            many as its cores and memory have room for. With a pool: how many stages may be asked for at a time.
        remote: name of a DVC remote. Results that it has are taken from it; what was made is sent to it.
        pool: name of a work pool whose machines run the stages that compute; it needs a remote.
    """
    with hold_workspace(get_run_logger().info) as held:
        try:
            graph, params = prepare(targets or [], overrides or {}, preset, get_run_logger().info)
            if remote:
                fetch_run_cache(remote)
            where = places(pool, remote, graph, params, parallel, get_run_logger().info)
        except UserError as error:
            get_run_logger().error(str(error))
            return Failed(message=str(error))
        with pipeline_run("flows.pipeline") as pipeline:
            pipeline.open(params)
            locked, (_, fresh, order) = names_in_lock(), look(targets or [], force)
            repro = Repro(force, remote, Processes([held]), Shares(stage_shares(params, where.here)))
            with nullcontext() if set(graph) <= fresh else tracking_process(pipeline.folder):
                states = run_stages(graph, fresh, repro, where.bring, where.number)
            order_lock(locked, order)
            for stage, state in states.items():
                pipeline.stage(stage, _named(state))
            _show(states, pipeline)
            pipeline.close("FINISHED" if all(state.is_completed() for state in states.values()) else "FAILED")
        return _finish(states, remote)


def _show(states: Mapping[str, State[Any]], pipeline: Pipeline) -> None:
    """Shows on Prefect's pages what was done; where that fails there is only a warning."""
    try:
        pipeline.wait(MLFLOW_SECONDS)
        if pipeline.run_id:
            publish_mlflow_link(pipeline.experiment, pipeline.run_id)
            page = runs_page(pipeline.experiment)
            get_run_logger().info("runs in MLflow (`make ui` serves the page): %s", page)
        if EVALUATE in states and states[EVALUATE].is_completed():
            publish_results()
    except Exception as error:
        get_run_logger().warning(without_passwords(f"not shown on Prefect's pages: {error}"))


def _finish(states: Mapping[str, State[Any]], remote: str | None) -> State[None]:
    """Sends what was done to the remote; returns the flow's state."""
    done = [stage for stage, state in states.items() if state.is_completed()]
    if remote:
        sent = send(remote, done, return_state=True)
        if not sent.is_completed():
            return Failed(message=f"nothing was sent to remote {remote}: {sent.message}")
    missing = [f"{stage} ({_named(state)})" for stage, state in states.items() if stage not in done]
    if missing:
        return Failed(message=f"not done: {', '.join(missing)}")
    cached = [_named(state) for state in states.values()].count("Cached")
    return Completed(message=f"{len(done)} stages, {cached} of them were up to date")


def _named(state: State[Any]) -> str:
    return state.name or state.type.value


@task(retries=1, retry_delay_seconds=10, cache_policy=NO_CACHE)
def send(remote: str, stages: list[str]) -> None:
    """Sends the results of the stages that are done to a DVC remote."""
    get_run_logger().info(f"{push(remote, stages)} files sent to remote {remote}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m flows.pipeline",
        description=ABOUT,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("targets", nargs="*", help="stages (default: all)")
    parser.add_argument(
        "--set",
        type=value_of,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="write a value into params.yaml, where it stays; repeat --set for further values",
    )
    parser.add_argument("--force", action="store_true", help="run stages that are up to date too")
    parser.add_argument("--preset", help="preset that replaces params.yaml first")
    parser.add_argument(
        "--parallel",
        type=int,
        help="how many stages may run at the same time (default: one for each accelerator, or as many as fit the CPU)",
    )
    parser.add_argument("--remote", help="DVC remote that results are taken from and sent to")
    parser.add_argument("--pool", help="work pool whose machines run the stages that compute; needs --remote")
    return parser


def _run(options: argparse.Namespace) -> State[Any]:
    """Runs the flow in this process, with a server where one answers.

    Raises: UserError for a wrong params.yaml, preset, key or value, before a server starts.
    """
    overrides = dict(options.overrides)
    if options.preset is None:
        load_params()
    overridden(overrides, options.preset)
    with local_settings():
        return rarlhf(
            targets=options.targets,
            overrides=overrides,
            force=options.force,
            preset=options.preset,
            parallel=options.parallel,
            remote=options.remote,
            pool=options.pool,
            return_state=True,
        )


def main() -> int:
    """The command line; returns the exit status."""
    options = _parser().parse_args()
    return status_of(lambda: _run(options), "stopped")


if __name__ == "__main__":
    sys.exit(main())
