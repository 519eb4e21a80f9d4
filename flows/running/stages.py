"""Stages as Prefect tasks: Prefect shows them, logs their lines and tries again where a failure may pass.

When a stage fails, the stages that do not need it go on. Whatever ends the flow, `kill -9` included, makes the running
stages save and end.
"""

from collections.abc import Callable
from typing import Any

from prefect import Task, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.futures import PrefectFuture
from prefect.states import Cancelled, Completed
from prefect.task_runners import ThreadPoolTaskRunner

from flows.running.graph import Graph
from flows.running.reproduce import RETRY_SECONDS, Ended, PassingTrouble, Repro, reproduce
from flows.running.schedule import in_order
from tasks.inputs import title_of

Bring = Callable[[str, Repro, Callable[[str], object]], Ended]  # as `reproduce`


def _may_pass(_task: object, _run: TaskRun, state: State[Any]) -> bool:
    return isinstance(state.result(raise_on_failure=False), PassingTrouble)


@task(retries=1, retry_delay_seconds=RETRY_SECONDS, retry_condition_fn=_may_pass, cache_policy=NO_CACHE)
def run_stage(stage: str, repro: Repro, bring: Bring = reproduce) -> State[None]:
    """Brings one stage up to date, as soon as there is a free share; its log lines go to Prefect's log.

    Args:
        stage: its name in dvc.yaml.
        repro: how it is brought up to date.
        bring: brings it up to date, here or elsewhere.
    """
    ended = bring(stage, repro, lambda line: get_run_logger().info("%s: %s", stage, line))
    if ended is Ended.CANCELLED:
        return Cancelled(message="stopped with the flow")
    return Completed(name=ended.value)


@task(cache_policy=NO_CACHE)
def skip_stage() -> State[None]:
    """The task of a stage that was up to date when the flow began, as were all stages that it needs; runs nothing."""
    return Completed(name=Ended.CACHED.value)


def run_stages(
    graph: Graph, fresh: set[str], repro: Repro, bring: Bring = reproduce, number: int | None = None
) -> dict[str, State[Any]]:
    """Runs the stages of a graph within a flow run; returns the final state of each.

    A stage whose upstream failed is not started: its state is NotReady.

    Args:
        graph: stage to the stages it waits for, those first.
        fresh: stages that are up to date.
        repro: how a stage is brought up to date.
        bring: brings one up to date, here or elsewhere.
        number: of stages that may run at the same time; where None, as many as there are shares.
    """
    number = number or repro.shares.number
    futures: dict[str, PrefectFuture[Any]] = {}
    # As many workers as shares, so that a stage that waits for one is not shown as running.
    runner: ThreadPoolTaskRunner[Any] = ThreadPoolTaskRunner(max_workers=number)

    def start(stage: str) -> PrefectFuture[Any]:
        skip = stage in fresh
        work: Task[..., State[None]] = skip_stage if skip else run_stage
        named = work.with_options(name=stage, task_run_name=title_of(stage))
        parameters = {} if skip else {"stage": stage, "repro": repro, "bring": bring}
        futures[stage] = runner.submit(named, parameters, [futures[name] for name in graph[stage]])
        return futures[stage]

    with runner, repro.processes:  # in this order: the runner waits for its workers, and those for the processes
        in_order(graph, start, number)
        return {stage: final_state(futures[stage]) for stage in graph}


def final_state(future: PrefectFuture[Any]) -> State[Any]:
    """The state in which a task ended; waits for its end."""
    future.wait()
    return future.state
