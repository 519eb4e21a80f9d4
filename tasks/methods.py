"""Stage `methods`: what decides the risk of each PPO method."""

from pathlib import Path

from tasks.running.stage import Run, stage


@stage
def methods(run: Run, out: Path) -> None:
    """Write the values of each method's risk that its measure reads, so that a change to one trains that one alone."""
    from rarlhf.config.methods import methods_of
    from rarlhf.risk.measures import deciding_values
    from rarlhf.system.files import write_json

    with run.output(out) as folder:
        for method in methods_of(run.params):
            if method.risk is not None:
                write_json(folder / f"{method.name}.json", deciding_values(method.risk))


if __name__ == "__main__":
    methods()
