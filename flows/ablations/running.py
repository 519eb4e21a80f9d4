"""Runs the cells of an ablation that have not run before, each as a task of the flow."""

from collections.abc import Mapping, Sequence
from typing import Any

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture
from prefect.states import Cancelled, Failed
from prefect.task_runners import ThreadPoolTaskRunner

from flows.ablations.cells import shared_stages
from flows.ablations.experiments import ExperimentError, Experiments, Outcome
from flows.ablations.plan import Plan
from flows.running.devices import Shares, accelerators, shares
from flows.running.stages import final_state


@task(cache_policy=NO_CACHE)
def run_experiment(
    name: str,
    values: Mapping[str, Any],
    targets: Sequence[str],
    experiments: Experiments,
    free: Shares,
    environment: Mapping[str, str],
) -> Outcome | State[None]:
    """Runs an experiment as soon as a share of the machine is free."""
    with free.one() as share:
        if experiments.processes.stopped:
            return Cancelled(message="stopped with the flow")
        try:
            return experiments.run(name, values, targets, {**share, **environment}, get_run_logger().info)
        except ExperimentError as error:
            return Failed(message=str(error))


class Runner:
    """Runs the cells that have not run before, within a flow run."""

    def __init__(self, plan: Plan, experiments: Experiments, jobs: int | None, environment: Mapping[str, str]) -> None:
        self._plan = plan
        self._experiments = experiments
        self._environment = environment
        cpu = next(iter(plan.cells.values())).params.runtime.device == "cpu"
        self._free = Shares(shares([] if cpu else accelerators(), jobs))
        self._runner: ThreadPoolTaskRunner[Any] = ThreadPoolTaskRunner(max_workers=self._free.number)

    def run(self) -> tuple[dict[str, Outcome], dict[str, str]]:
        """Runs them.

        Returns: what each finished cell took, and the error of each failed one, both by name.
        """
        for name in self._plan.cells:
            if name in self._plan.kept:
                get_run_logger().info("%s: has run before, kept", name)
        with self._runner, self._experiments.processes:  # in this order: the runner waits for what the processes do
            shared = self._run_shared()
            if shared:
                return {}, dict.fromkeys(self._plan.pending, shared)
            futures = {name: self._submit(name, name, []) for name in self._plan.pending}
            states = {name: final_state(future) for name, future in futures.items()}
        done = {name: state.result() for name, state in states.items() if state.is_completed()}
        return done, {name: str(state.message) for name, state in states.items() if not state.is_completed()}

    def _run_shared(self) -> str:
        """Makes what all cells share, so that none of them makes it twice; returns the error if that failed."""
        cells = [self._plan.cells[name] for name in self._plan.pending]
        if len(cells) < 2:
            return ""
        targets = shared_stages({**self._plan.common, **cells[0].settings}, cells)
        name = f"{self._plan.name}-shared"
        state = final_state(self._submit(self._plan.pending[0], name, targets))
        self._experiments.remove(name)
        return "" if state.is_completed() else str(state.message)

    def _submit(self, cell: str, name: str, targets: Sequence[str]) -> PrefectFuture[Any]:
        """Starts an experiment with a cell's params."""
        values = {**self._plan.common, **self._plan.cells[cell].settings}
        named = run_experiment.with_options(name="shared" if targets else "cell", task_run_name=name)
        what = {"name": name, "values": values, "targets": targets, "environment": self._environment}
        return self._runner.submit(named, what | {"experiments": self._experiments, "free": self._free})
