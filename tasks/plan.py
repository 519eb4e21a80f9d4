"""Stage `plan`: what decides each trained method's risk, with its plan, and what is attainable at each KL."""

from pathlib import Path

from tasks.running.stage import Run, stage


@stage
def plan(run: Run, samples: Path, out: Path) -> None:
    """Plan each method that needs it on the SFT model's answers to training prompts, and draw the frontier."""
    from rarlhf.config.methods import methods_of
    from rarlhf.decoding.samples import read_samples
    from rarlhf.evaluation.figures import png
    from rarlhf.evaluation.plans import frontier_figure, frontier_table, plan_table
    from rarlhf.risk.plan import Answers, caution, frontier, reference
    from rarlhf.risk.planned import at_one_level, file_of, method_values, planned_settings, plans_of
    from rarlhf.system.files import write_json

    answers = Answers(read_samples(samples).scores.double().numpy())
    methods = methods_of(run.params)
    trained = [method for method in methods if method.risk is not None]
    plans = plans_of(trained, answers, run.params.kl.target)
    alpha, shown = at_one_level(trained, plans, answers, run.params.risk.alpha)
    start, rows = reference(answers, alpha), frontier(answers, alpha, run.params.plan.kl)
    picture = png(frontier_figure(start, rows, shown, alpha))
    with run.output(out) as folder:
        (folder / "methods").mkdir()
        for method in trained:
            write_json(folder / "methods" / f"{method.name}.json", file_of(method, plans.get(method.name)))
        for method in methods:
            if method.chosen is not None:
                values = planned_settings(method.chosen.settings, answers, run.params.kl.target)
                write_json(folder / "methods" / f"{method.name}.json", method_values(method) | values)
        for name in run.params.methods.heads:
            (folder / "heads").mkdir(exist_ok=True)
            values = planned_settings(run.params.head_of(name), answers, run.params.kl.target)
            write_json(folder / "heads" / f"{name}.json", values)
        write_json(folder / "frontier.json", frontier_table(start, rows, shown, alpha))
        (folder / "frontier.png").write_bytes(picture)
        run.tracker.artifact(folder / "frontier.png")
    for line in filter(None, (caution(name, planned) for name, planned in plans.items())):
        run.log(f"warning: {line}")
    run.log(plan_table(start, shown, alpha))


if __name__ == "__main__":
    plan()
