"""Stage `check`: refuse bad parameters and say what the run will need, before anything runs."""

from pathlib import Path

from tasks.running.stage import Run, stage


@stage
def check(run: Run, out: Path, code: Path) -> None:
    """Estimate time, memory and disk, and refuse a machine that clearly does not suffice."""
    from rarlhf.config.rules import cautions
    from rarlhf.models.lengths import refuse_too_long
    from rarlhf.training.estimate import accelerator_memory, available_memory, estimate, refuse_if_short
    from rarlhf.training.preflight import Made, refuse_missing

    refuse_missing(run.params, Made())
    refuse_too_long(Path(run.params.model.source), run.params)
    needs = estimate(run.params)
    if needs is None:
        run.log(f"no estimate: the size of {run.params.model.source} is not known before it is there")
    else:
        run.log(needs.text())
        refuse_if_short(needs, Path.cwd(), available_memory(), accelerator_memory(run.params))
    for warning in cautions(run.params):
        run.log(f"warning: {warning}")
    for path in (out, code):
        with run.output(path) as file:  # constant, so that only bad parameters stop later stages
            file.write_text("params.yaml is valid\n", encoding="utf-8")


if __name__ == "__main__":
    check()
